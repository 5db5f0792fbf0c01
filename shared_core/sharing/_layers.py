"""The neurons of a net, in the order in which they run, and how large their activations are."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .._plan_copy import fake_copy, reset_copy
from .._planning import planning
from ..errors import MemextError
from ..retrofit import Framework

__all__ = ["Layer", "SharingHost", "layers_of", "observe"]


@dataclass(frozen=True)
class SharingHost:
    """What sharing must know of a framework.

    framework: the adapter's.
    channel_class(neuron): (class that it becomes where its channels share a membrane, None), or (None, why it cannot).
    joined_class(neuron): likewise, where it shares its membrane with other layers.
    parameters(neuron): what has to be equal in layers that share a membrane, by name.
    set_channels(neuron, groups): attributes that split its channels.
    set_joined(neurons, names): attributes, per neuron, that give them the membrane of the first.
    on_sequences(neuron): is it called on [T, N, *], as it is set now, so that time has to be brought outside?
    one_step(parts, whole): context manager that yields a function from [N, *] to what the modules `parts`, called one
        after the other, make of one step; `whole`: by the forward of their class, as theirs is replaced.
    needs_sequence(layer): why it cannot be called on one step of a sequence, or None.
    """

    framework: Framework
    channel_class: Callable[[nn.Module], tuple[type | None, str | None]]
    joined_class: Callable[[nn.Module], tuple[type | None, str | None]]
    parameters: Callable[[nn.Module], Mapping[str, object]]
    set_channels: Callable[[nn.Module, int], dict[str, object]]
    set_joined: Callable[[Sequence[nn.Module], Sequence[str]], list[dict[str, object]]]
    on_sequences: Callable[[nn.Module], bool] = lambda neuron: False
    one_step: Callable[[Sequence[nn.Module], bool], AbstractContextManager] | None = None
    needs_sequence: Callable[[nn.Module], str | None] = lambda layer: None


@dataclass
class Layer:
    """One neuron.  size: of its activation without time and batch, None where it was not seen to run."""

    name: str
    neuron: nn.Module
    size: tuple[int, ...] | None = None


def layers_of(host: SharingHost, net: nn.Module) -> list[Layer]:
    """Every neuron of the framework, once, in the order of modules."""
    return [Layer(name, m) for name, m in net.named_modules() if host.framework.is_neuron(m)]


def observe(host: SharingHost, net: nn.Module, layers: Sequence[Layer], sample) -> list[Layer]:
    """The layers that run on the sample, in the order in which they first do, with their sizes filled in.

    sample: a tensor, a tuple of tensors (arguments of forward), or the shape of one. Runs a copy of the net on tensors
    without memory: nothing is computed, and the net is not touched. Raises MemextError: the net cannot run on it.
    """
    where, seen = f"{host.framework.package}.share", []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), planning(), FakeTensorMode(allow_non_fake_inputs=True):
        arguments = _fake(where, sample)
        try:
            copied = fake_copy(net, "cpu")
        except MemextError as problem:
            raise MemextError(f"{where}: {problem}") from problem
        reset_copy(copied)
        for layer in layers:
            copied.get_submodule(layer.name).register_forward_pre_hook(
                lambda m, args, layer=layer: _see(host, layer, m, args, seen))
        try:
            copied(*arguments)
        except MemextError:
            raise
        except Exception as problem:
            shapes = ", ".join(str(tuple(a.shape)) for a in arguments)
            raise MemextError(f"{where}: the net does not run on a sample of shape {shapes} "
                              f"({type(problem).__name__}: {problem}); pass sample=x, a batch as it is trained on, or "
                              "its shape") from problem
    return seen


def _see(host: SharingHost, layer: Layer, module: nn.Module, args: tuple, seen: list[Layer]) -> None:
    if layer.size is None:
        layer.size = tuple(args[0].shape[2 if host.on_sequences(module) else 1:])
        seen.append(layer)


def _fake(where: str, sample) -> tuple[Tensor, ...]:
    if isinstance(sample, Tensor):
        sample = (sample,)
    elif isinstance(sample, Sequence) and sample and all(isinstance(n, int) and n > 0 for n in sample):
        return (torch.empty(tuple(sample)),)
    if not isinstance(sample, Sequence) or not sample or not all(isinstance(t, Tensor) for t in sample):
        raise MemextError(f"{where}: sample is {sample!r:.80}; a tensor like the net's input, a tuple of tensors, or a "
                          "shape is needed")
    return tuple(torch.empty_strided(t.size(), t.stride(), dtype=t.dtype) for t in sample)
