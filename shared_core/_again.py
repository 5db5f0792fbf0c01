"""To run code a second time as it ran before, and to leave no trace: random numbers, a module's attributes."""
from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["fork", "put_back", "random_state", "set_random_state"]


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the CPU's generator, and of the device's."""
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def set_random_state(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def fork(device: torch.device):
    """Context manager: random numbers drawn inside are not drawn outside."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def put_back(module: nn.Module, attributes: dict, buffers: dict) -> None:
    """Plain attributes and buffers as they were; the dictionaries that hold them are the module's own objects."""
    for name in [name for name in module.__dict__ if name not in attributes]:
        del module.__dict__[name]
    module.__dict__.update(attributes)
    module._buffers.update(buffers)
