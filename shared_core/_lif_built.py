"""Counting the membranes of a built network: one step of one sample through a copy, then a look at what it carries.

The copy and the sample have shapes and no memory, as the planner's do; nothing is computed.
"""
from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ._plan_copy import fake_copy, reset_copy, unwrapped
from ._planning import planning
from .errors import MemextError
from .lif_memory import PAPER_STEPS, LifMemory, Membrane, _positive
from .temporal._hosts import hosts

__all__ = ["built"]


def built(net: nn.Module, sample, time_steps: int | None) -> LifMemory:
    """The membranes that `net` has after a step, and which neurons each serves.

    sample: its input, batch included, [T, N, ...] in multi-step mode and [N, ...] else; or the shape of one.
    The network itself is not run or changed. All states of a neuron count (snnTorch's Synaptic
    has two). Raises MemextError: no neuron in it, no sample, or none of its neurons ran.
    """
    net = unwrapped(net)
    x = _shape_of(sample)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), planning(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            copied = fake_copy(net, "cpu").eval()
        except MemextError as problem:
            raise MemextError(f"lif_memory: {problem}") from problem
        return _count(copied, torch.empty(x), time_steps)


def _count(net: nn.Module, x: Tensor, time_steps: int | None) -> LifMemory:
    """`net` is a copy: it is run, and holds our hooks afterwards."""
    neurons = {module: (name, host) for name, module in net.named_modules() for host in hosts()
               if host.framework.is_neuron(module)}
    if not neurons:
        raise MemextError(f"lif_memory: {type(net).__name__} holds no spiking neuron of a framework that is imported")
    multi_step = any(getattr(module, "step_mode", None) == "m" for module in neurons)
    if multi_step:
        time_steps = len(x) if time_steps is None else time_steps
    one = x[:1, :1] if multi_step else x[:1]
    calls = _calls(net, list(neurons), one, multi_step)
    found: dict[int, Membrane] = {}
    for module, shapes in calls.items():
        name, host = neurons[module]
        for state in (host.get(module, key) for key in host.states(module)):
            if isinstance(state, Tensor):
                before = found.get(id(state))  # a tensor that several neurons hold is one membrane
                layers = (*(before.layers if before else ()), *[name or "net"] * len(shapes))
                groups = max(1, shapes[0].numel() // state.numel())
                found[id(state)] = Membrane(tuple(shapes[0]), layers, groups)
    if not found:
        raise MemextError("lif_memory: no neuron of the network ran on the sample, so none has a membrane")
    return LifMemory(tuple(found.values()), _positive("time_steps", PAPER_STEPS if time_steps is None else time_steps))


def _shape_of(sample) -> list[int]:
    if isinstance(sample, Tensor) and sample.dim() >= 2 and sample.numel():
        return list(sample.shape)
    if isinstance(sample, list | tuple) and len(sample) >= 2:
        return [_positive("the input's shape", n) for n in sample]
    raise MemextError(f"lif_memory: the sample is {type(sample).__name__}; of a built network, allowed: an input of at "
                      "least two dimensions, batch included, or its shape")


def _calls(net: nn.Module, neurons: list[nn.Module], x: Tensor, multi_step: bool) -> dict[nn.Module, list[torch.Size]]:
    """Per neuron, the shape (C, ...) of its input in each call of a step; a neuron that was not called is left out."""
    found: dict[nn.Module, list[torch.Size]] = defaultdict(list)

    def note(module: nn.Module, inputs: tuple) -> None:
        in_sequence = getattr(module, "step_mode", None) == "m"
        found[module].append(inputs[0].shape[2 if in_sequence else 1:])

    for module in neurons:
        module.register_forward_pre_hook(note)
    reset_copy(net)
    try:
        net(x)
    except Exception as error:
        raise MemextError(f"lif_memory: the network raised {type(error).__name__} on a sample of shape "
                          f"{tuple(x.shape)}: {error}") from error
    return found
