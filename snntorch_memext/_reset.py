"""snnTorch's utils.reset for neurons of ours: it resets those of the net that it is given, nested ones and copies too.

snnTorch 1.0.0 looks at the direct children of the net for classes, and then resets every neuron of these classes that
was ever made: those of other nets, and of deleted ones, but neither nested ones nor deepcopies. Here:

- a net that holds a neuron of ours has all its neurons reset, wherever in it they are, and whether the framework's list
  knows them or not;
- a neuron of ours that is known to belong to one net is not reset by another;
- what the framework would reset besides is reset as ever, neurons in plain Python lists among them.

Nets without a neuron of ours are reset as ever, except that neurons of ours in other nets stay as they are.
"""
from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

from snntorch import utils
from torch import nn

from shared_core._entering import entered, plain_type

from ._fused import Fused
from ._host import SpikingNeuron

__all__ = ["housed", "install", "of_one_net", "reset"]

# The framework's flags of what a net holds, and the classes they stand for; snntorch.backprop reads them after a reset.
_FLAGS = ("Alpha", "Leaky", "LinearLeaky", "RLeaky", "Synaptic", "RSynaptic", "Lapicque", "SConv2dLSTM", "SLSTM")
_housed: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # neurons that a net is known to hold
_theirs = (utils._layer_check, utils._layer_reset)
_last: list[nn.Module | None] = [None]


def install() -> None:
    """Puts both halves of utils.reset in place; `from snntorch.utils import reset` done earlier runs them, too. Calling
    it again is fine."""
    utils._layer_check, utils._layer_reset = _check, _reset


def reset(net: nn.Module) -> None:
    """Hidden states of all spiking neurons in `net` back to rest, without a graph; of no other."""
    _by_the_framework(_neurons(net))


def of_one_net(modules: Sequence[nn.Module]) -> None:
    """All modules of a net that was retrofitted, or restored: from now on its resets are its own, or not any more."""
    ours = [module for module in modules if isinstance(module, SpikingNeuron) and _is_ours(module)]
    if ours:
        install()
        housed(ours)
    _housed.difference_update(module for module in modules if not _is_ours(module))


def housed(neurons: Iterable[nn.Module]) -> None:
    """These belong to a net: another net's reset does not reach them."""
    _housed.update(neurons)


def _is_ours(module: nn.Module) -> bool:
    return bool(entered(module)) or issubclass(plain_type(module), Fused)


def _neurons(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, SpikingNeuron)]


def _check(net: nn.Module) -> None:
    _theirs[0](net)
    _last[0] = net
    found = _neurons(net)
    if any(map(_is_ours, found)):
        housed(found)
        import snntorch
        for name in _FLAGS:
            if any(isinstance(module, getattr(snntorch, name, ())) for module in found):  # 0.9.4 lacks some
                setattr(utils, f"is_{name.lower()}", True)


def _reset() -> None:
    net, _last[0] = _last[0], None
    listed = [neuron for neuron in map(_neuron, SpikingNeuron.instances) if neuron is not None]
    mine = [] if net is None else _neurons(net)
    if net is None or not any(map(_is_ours, [*listed, *mine])):
        _theirs[1]()
        return
    own, known = set(map(id, mine)), set(map(id, listed))
    if not any(map(_is_ours, mine)):
        mine = [neuron for neuron in mine if id(neuron) in known]
    others = [neuron for neuron in listed
              if id(neuron) not in own and not (_is_ours(neuron) and neuron in _housed)]
    _swapped([*mine, *others], _theirs[1])


def _neuron(entry):
    """The neuron itself, or None for one that is gone: in the framework's list, entries stand for those of ours."""
    return entry._of() if hasattr(type(entry), "_of") else entry


def _by_the_framework(neurons: list[nn.Module]) -> None:
    kinds = {base for module in neurons for base in type(module).__mro__ if "reset_hidden" in vars(base)}

    def run():
        for kind in kinds:
            kind.reset_hidden()
            kind.detach_hidden()

    _swapped(neurons, run)


def _swapped(neurons: list, run) -> None:
    """The framework's class methods go through `instances`; for a while that is these neurons."""
    kept = SpikingNeuron.instances
    SpikingNeuron.instances = neurons
    try:
        run()
    finally:
        SpikingNeuron.instances = kept
