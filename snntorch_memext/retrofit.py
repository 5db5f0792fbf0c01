"""Our neurons in a built snnTorch model, or in one that is being built; and out again.

    net = retrofit(net, "neuron")            # in place; keys, parameters, hooks and objects stay
    print(report(net))
    with substitute("neuron"):               # or as a decorator
        net = build()                        # snn.Leaky(...) makes a FusedLeaky
    restore(net)                             # the framework's own neurons again

snnTorch keeps every neuron it ever made alive in SpikingNeuron.instances; those that are ours it keeps no longer. Its
utils.reset(net) resets ours of this net, nested ones too, and of no other (_reset.py).
"""
from __future__ import annotations

from torch import nn

from shared_core._entering import plain_type
from shared_core.registry import NeuronEntry
from shared_core.retrofit import Framework, Retrofitter, exchange_neurons
from shared_core.substitute import substitute as _substitute

from ._fused import Fused
from ._host import NEURON_CLASSES
from ._instances import hold_strongly, hold_weakly
from ._reset import of_one_net
from .neurons import overrides

__all__ = ["METHODS", "NEURONS", "report", "restore", "retrofit", "substitute"]


def _entry(replaces: str) -> NeuronEntry:
    return NeuronEntry(f"Fused{replaces}", "snntorch", f"snntorch_memext.neurons:Fused{replaces}",
                       f"snntorch:{replaces}", f"shared_core.dynamics:{replaces}", owner="memext")


FUSED_LEAKY, FUSED_SYNAPTIC = _entry("Leaky"), _entry("Synaptic")
SHARED_LEAKY = NeuronEntry("SharedLeaky", "snntorch", "snntorch_memext.shared:SharedLeaky",
                           dynamics="shared_core.dynamics:Leaky", owner="memext")  # replaces none
REVERSIBLE_LEAKY = NeuronEntry("ReversibleLeaky", "snntorch", "snntorch_memext.reversible:ReversibleLeaky",
                               owner="memext")
NEURONS = (FUSED_LEAKY, FUSED_SYNAPTIC, SHARED_LEAKY, REVERSIBLE_LEAKY)


def _leave(neurons) -> None:
    """Takes off what our classes computed and kept on the object, and gives the framework its list back."""
    for neuron in neurons:
        if issubclass(plain_type(neuron), Fused):
            neuron._forget_caches()
    hold_strongly(neurons)


def _is_neuron(module: nn.Module) -> bool:
    return isinstance(module, NEURON_CLASSES)


FRAMEWORK = Framework("snntorch", "snntorch_memext", _is_neuron, overrides, joined=hold_weakly, left=_leave,
                      touched=of_one_net)
METHODS = {"neuron": exchange_neurons}  # name -> function(framework, net, **options) -> shared_core.retrofit.Plan

_retrofitter = Retrofitter(FRAMEWORK, METHODS)
retrofit, restore, report = _retrofitter.retrofit, _retrofitter.restore, _retrofitter.report


def substitute(method: str = "neuron"):
    """Context manager and decorator: snn.Leaky constructed inside is FusedLeaky, snn.Synaptic FusedSynaptic.

    Yields a shared_core.retrofit.Report that fills up. However the class was imported, only constructions in this
    thread are affected, and the class is untouched afterwards. Raises MemextError: another method than "neuron".
    """
    return _substitute(FRAMEWORK, method)
