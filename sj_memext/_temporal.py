"""Where SpikingJelly's modules keep what they carry from step to step: shared_core.temporal's view of the framework."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_core import temporal
from shared_core.errors import MemextError

from ._host import base, layer, neuron
from .retrofit import FRAMEWORK

__all__ = ["HOST"]

# Their sequence form is that of the LIF they are made of, with the gradient that their steps leave out.
_ONE_BY_ONE = (neuron.SLTTLIFNode, neuron.OTTTLIFNode)


def _states(module: nn.Module) -> tuple[str, ...]:
    return tuple(module._memories) if isinstance(module, base.MemoryModule) else ()


def _set(module: nn.Module, name: str, value) -> None:
    module._memories[name] = value


def _sequence(module: nn.Module, x_seq: Tensor):
    """A sequence through a module in step mode "s"."""
    if isinstance(module, _ONE_BY_ONE) and "_kind" not in vars(type(module)):
        return torch.stack([module(x) for x in x_seq])
    return module.multi_step_forward(x_seq)


def _check(module: nn.Module, name: str) -> None:
    if isinstance(module, base.StepModule) and module.step_mode == "m":
        raise MemextError(f"unroll: {name or 'the module'} ({type(module).__name__}) has step_mode='m', and would take "
                          "the batch for the time; call functional.set_step_mode(net, 's') first. (For a net that runs "
                          "in step mode 'm', use retrofit(net, 'recompute'))")
    queues = [key for key in _states(module) if isinstance(module._memories[key], list)]
    if queues:
        raise MemextError(f"unroll: {name or 'the module'} ({type(module).__name__}) carries the list "
                          f"{queues[0]!r} from step to step and writes into it, so what it was before a step cannot be "
                          "brought back; run this net with functional.multi_step_forward of SpikingJelly")


HOST = temporal.Host(FRAMEWORK, _states, lambda m, name: m._memories[name], _set, _sequence,
                     pools=(layer.MaxPool2d,), check=_check)
