"""snnTorch's list of every neuron ever made, without keeping ours alive.

`SpikingNeuron.instances` is how utils.reset, backprop and reset_hidden find what to reset: a class method runs through
the list and takes what is an instance of its class. The entry of a neuron that is ours is a weak proxy: isinstance and
attributes pass through it, so all of these work, and a network that is deleted is freed.
"""
from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import nn

from ._host import SpikingNeuron

__all__ = ["hold_new_weakly", "hold_strongly", "hold_weakly"]

# Takes a dead neuron's place until the list is next swept. The list must not shrink when a neuron dies: garbage
# collection may come while the framework runs through it by index. It is swept when neurons of ours are made or
# exchanged: neither happens inside the framework's loops.
_GONE = SimpleNamespace(syn=torch.zeros(0), mem=torch.zeros(0))


def hold_weakly(neurons: Sequence[nn.Module]) -> None:
    """From now on the list does not keep these neurons alive. Those it does not know (copies) stay unknown to it."""
    _exchange(neurons, lambda neuron: weakref.proxy(neuron, _bury))


def hold_new_weakly(neuron: nn.Module) -> None:
    """For a constructor: the list, which has just got this neuron at its end, does not keep it alive."""
    instances = SpikingNeuron.instances
    for index in range(len(instances) - 1, -1, -1):  # the last one, unless other threads make neurons too
        if instances[index] is neuron:
            instances[index] = weakref.proxy(neuron, _bury)
            break
    _sweep()


def hold_strongly(neurons: Sequence[nn.Module]) -> None:
    """As the framework does it: the list keeps these neurons alive."""
    _exchange(neurons, lambda neuron: neuron)


def _exchange(neurons: Sequence[nn.Module], entry_for) -> None:
    known_as = {id(entry): neuron for neuron in neurons for entry in (neuron, *weakref.getweakrefs(neuron))}
    instances = SpikingNeuron.instances
    for index, entry in enumerate(instances):
        if id(entry) in known_as:
            instances[index] = entry_for(known_as[id(entry)])
    _sweep()


def _sweep() -> None:
    # From the end and in place: neurons that die meanwhile only change entries, and a copy would keep the old ones.
    instances = SpikingNeuron.instances
    for index in range(len(instances) - 1, -1, -1):
        if instances[index] is _GONE:
            del instances[index]


def _bury(proxy) -> None:
    instances = SpikingNeuron.instances
    for index, entry in enumerate(instances):
        if entry is proxy:
            instances[index] = _GONE
