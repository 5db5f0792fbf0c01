"""Our neurons in a built SpikingJelly model, or in one that is being built; and out again.

    net = retrofit(net, "neuron")            # in place; keys, parameters, hooks and objects stay
    print(report(net))
    with substitute("neuron"):               # or as a decorator
        net = build()                        # neuron.LIFNode(...) makes a FusedLIFNode
    restore(net)                             # the framework's own neurons again
"""
from __future__ import annotations

from torch import nn

from shared_core.chain.auto import auto
from shared_core.chain.method import compress, recompute
from shared_core.registry import NeuronEntry
from shared_core.retrofit import Framework, Retrofitter, exchange_neurons
from shared_core.substitute import substitute as _substitute

from ._host import functional, neuron
from ._retrofit_reversible import reversible
from .attention import LAYERS
from .neuron import _EQUATIONS, overrides

__all__ = ["METHODS", "NEURONS", "report", "restore", "retrofit", "substitute"]


def _entry(name: str, replaces: str, dynamics: str, module: str = "neuron") -> NeuronEntry:
    return NeuronEntry(name, "spikingjelly", f"sj_memext.{module}:{name}", f"{neuron.__name__}:{replaces}",
                       f"shared_core.dynamics:{dynamics}", owner="memext")


FUSED_IF = _entry("FusedIFNode", "IFNode", "IF")
FUSED_LIF = _entry("FusedLIFNode", "LIFNode", "LIF")
FUSED_PARAMETRIC_LIF = _entry("FusedParametricLIFNode", "ParametricLIFNode", "ParametricLIF")
FUSED_KLIF = _entry("FusedKLIFNode", "KLIFNode", "KLIF", "klif")
FUSED_HALF_THRESHOLD_IF = _entry("FusedHalfThresholdIFNode", "HalfThresholdIFNode", "IF", "half_threshold")
FUSED_SLTT = _entry("FusedSLTTLIFNode", "SLTTLIFNode", "LIF", "sltt")
SHARED_LIF = NeuronEntry("SharedLIFNode", "spikingjelly", "sj_memext.shared:SharedLIFNode",
                         dynamics="shared_core.dynamics:LIF", owner="memext")  # replaces none: sharing is another model
REVERSIBLE_LIF, REVERSIBLE_OTTT = (NeuronEntry(name, "spikingjelly", f"sj_memext.reversible:{name}", owner="memext")
                                   for name in ("ReversibleLIFNode", "ReversibleOTTTLIFNode"))
NEURONS = (FUSED_IF, FUSED_LIF, FUSED_PARAMETRIC_LIF, FUSED_KLIF, FUSED_HALF_THRESHOLD_IF, FUSED_SLTT, SHARED_LIF,
           REVERSIBLE_LIF, REVERSIBLE_OTTT)


def _is_neuron(module: nn.Module) -> bool:
    return any(cls.__module__.startswith(neuron.__name__) for cls in type(module).__mro__)


def _forget_what_to_reset(modules) -> None:
    """functional.reset_net remembers, per module it was called on, what to reset."""
    for module in modules:
        functional.invalidate_reset_cache(module)


FRAMEWORK = Framework("spikingjelly", "sj_memext", _is_neuron, overrides, _EQUATIONS, touched=_forget_what_to_reset,
                      layers=LAYERS)
# name -> function(framework, net, **options) -> shared_core.retrofit.Plan
METHODS = {"neuron": exchange_neurons, "compress": compress, "recompute": recompute, "auto": auto,
           "reversible": reversible}

_retrofitter = Retrofitter(FRAMEWORK, METHODS)
retrofit, restore, report = _retrofitter.retrofit, _retrofitter.restore, _retrofitter.report


def substitute(method: str = "neuron"):
    """Context manager and decorator: IFNode, LIFNode, ParametricLIFNode, KLIFNode, SLTTLIFNode and
    HalfThresholdIFNode made inside are ours.

    Yields a shared_core.retrofit.Report that fills up. However the classes were imported, only constructions in this
    thread are affected, and the classes are untouched afterwards. Raises MemextError: another method than "neuron".
    """
    return _substitute(FRAMEWORK, method)
