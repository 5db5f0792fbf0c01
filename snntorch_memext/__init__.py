"""Memory-efficient neurons for snnTorch. Importing it registers them in the framework's own namespaces.

neurons.py     FusedLeaky, FusedSynaptic: also snntorch.Fused...
shared.py      SharedLeaky: a membrane that channel groups, or several layers, share (EfficientLIF-Net)
surrogate.py   rectangle, triangle, arctan: also snntorch.surrogate....
reversible.py  ReversibleLeaky: RevSNN's neuron, also snntorch.ReversibleLeaky
retrofit.py    retrofit(net, method), restore(net), report(net), substitute(method)
layers.py      ReversibleBlock, ReversibleSequence: memory that does not grow with depth
sharing.py     share(net, layers=..., channels=...): layers, or channels, share a membrane
backprop.py    BPTT, TBPTT, SLTT, SLTTK: an epoch each, as in snntorch.backprop
hardware.py    layer_table(net, x), estimate, sata, spikesim: what the network costs on hardware
"""
import snntorch as _snntorch

from shared_core import registry as _registry
from shared_core import temporal as _temporal_core

from . import _exchange, backprop, layers, neurons, surrogate  # noqa: F401  the exporter is told of our classes
from ._temporal import HOST as _HOST
from .retrofit import NEURONS as _NEURONS
from .retrofit import report, restore, retrofit, substitute
from .sharing import share

__all__ = ["backprop", "layers", "neurons", "register", "report", "restore", "retrofit", "share", "substitute",
           "surrogate"]


def register() -> None:
    """Puts our neurons and surrogates, and those other packages registered, into snnTorch's namespaces.

    Runs on import; calling it again is fine. Names of snnTorch itself are never replaced.
    """
    surrogate.register()
    for entry in _NEURONS:
        _registry.register(entry)
    _registry.serve("snntorch", _snntorch)
    _temporal_core.register(_HOST)


register()
