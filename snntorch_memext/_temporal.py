"""Where snnTorch's neurons keep what they carry from step to step: shared_core.temporal's view of the framework."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_core import temporal

from ._fused import Fused
from ._host import NEURON_CLASSES
from .retrofit import FRAMEWORK

__all__ = ["HOST"]


def _states(module: nn.Module) -> list[str]:
    """snnTorch registers states, and nothing else, as buffers that are not saved."""
    if not isinstance(module, NEURON_CLASSES) or not getattr(module, "init_hidden", False):
        return []
    return [name for name in module._buffers if name in module._non_persistent_buffers_set]


def _sequence(module: nn.Module, x_seq: Tensor):
    if isinstance(module, Fused):
        out = module.multi_step(x_seq, record=module.output)
        return out if module.output else out[0]
    steps = [module(x) for x in x_seq]
    return tuple(map(torch.stack, zip(*steps))) if isinstance(steps[0], tuple) else torch.stack(steps)


def _leave(module: nn.Module) -> None:
    if isinstance(module, Fused):
        module._forget_caches()


HOST = temporal.Host(FRAMEWORK, _states, getattr, setattr, _sequence, leave=_leave)
