"""snnTorch's list of every neuron ever made, without keeping ours alive.

`SpikingNeuron.instances` is how utils.reset, backprop and reset_hidden find what to reset: a class method runs through
the list and takes what is an instance of its class. The entry of a neuron that is ours is an `_Entry`: isinstance and
attributes pass through it, so all of these work, and a network that is deleted is freed.
"""
from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import nn

from ._host import SpikingNeuron

__all__ = ["hold_new_weakly", "hold_strongly", "hold_weakly"]


class _Entry:
    """Stands for a neuron while it lives, and for nothing afterwards.

    Not a weakref.proxy, which raises once its neuron is gone: garbage collection may come while the framework runs
    through the list, and a program may have copied the list. A dead entry is an instance of no neuron, lets states be
    read and set as one that just died needs, and is swept when neurons of ours are next made or exchanged: neither
    happens inside the framework's loops.
    """

    __slots__ = ("_of",)

    def __init__(self, neuron: nn.Module):
        object.__setattr__(self, "_of", weakref.ref(neuron))

    @property
    def __class__(self) -> type:
        neuron = self._of()
        return _Entry if neuron is None else type(neuron)

    def __getattr__(self, name: str):
        neuron = self._of()
        return torch.zeros(0) if neuron is None else getattr(neuron, name)

    def __setattr__(self, name: str, value) -> None:
        neuron = self._of()
        if neuron is not None:
            setattr(neuron, name, value)

    def __eq__(self, other) -> bool:  # `neuron in SpikingNeuron.instances`
        other = other._of() if type(other) is _Entry else other
        return other is not None and self._of() is other

    def __hash__(self) -> int:
        return hash(self._of)

    def __repr__(self) -> str:
        return f"<in place of {self._of()!r}>"


def hold_weakly(neurons: Sequence[nn.Module]) -> None:
    """From now on the list does not keep these neurons alive. Those it does not know (copies) stay unknown to it."""
    _exchange(neurons, _Entry)


def hold_new_weakly(neuron: nn.Module) -> None:
    """For a constructor: the list, which has just got this neuron at its end, does not keep it alive."""
    instances = SpikingNeuron.instances
    for index in range(len(instances) - 1, -1, -1):  # the last one, unless other threads make neurons too
        if instances[index] is neuron:
            instances[index] = _Entry(neuron)
            break
    _sweep()


def hold_strongly(neurons: Sequence[nn.Module]) -> None:
    """As the framework does it: the list keeps these neurons alive."""
    _exchange(neurons, lambda neuron: neuron)


def _exchange(neurons: Sequence[nn.Module], entry_for) -> None:
    wanted = {id(neuron) for neuron in neurons}
    instances = SpikingNeuron.instances
    for index, entry in enumerate(instances):
        neuron = entry._of() if type(entry) is _Entry else entry
        if id(neuron) in wanted:
            instances[index] = entry_for(neuron)
    _sweep()


def _sweep() -> None:
    # From the end and in place: another list would lose what other threads add meanwhile.
    instances = SpikingNeuron.instances
    for index in range(len(instances) - 1, -1, -1):
        entry = instances[index]
        if type(entry) is _Entry and entry._of() is None:
            del instances[index]
