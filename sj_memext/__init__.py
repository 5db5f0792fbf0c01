"""Memory-efficient neurons for SpikingJelly. Importing it registers them in the framework's own namespaces.

neuron.py      FusedIFNode, FusedLIFNode, FusedParametricLIFNode: also spikingjelly.activation_based.neuron.Fused...
klif.py        FusedKLIFNode, half_threshold.py FusedHalfThresholdIFNode (of converted ANNs): likewise
shared.py      SharedLIFNode: a membrane that channel groups, or several layers, share (EfficientLIF-Net)
sltt.py        SLTTLIFNode (in the framework: FusedSLTTLIFNode): the gradient without its temporal path, both step modes
surrogate.py   Rectangle, Triangle, Arctan: also spikingjelly.activation_based.surrogate....
reversible.py  ReversibleLIFNode, ReversibleOTTTLIFNode: RevSNN's neuron, a network of its own
retrofit.py    retrofit(net, method), restore(net), report(net), substitute(method)
layer.py       ReversibleBlock, ReversibleSequence: memory that does not grow with depth
sharing.py     share(net, layers=..., channels=...): layers, or channels, share a membrane
model/         vgg16, resnet19, har_net, rev_spiking_resnet21, rev_spiking_resnet37, rev_spikformer, t_revsnn
functional.py  multi_step_forward(x_seq, net, method=...), online_train_step(net, x_seq, loss_fn)
compat/        import sj_memext.compat: code written for SpikingJelly 0.0.0.0.12 to .14 (not imported by itself)
hardware.py    layer_table(net, x_seq), estimate, sata, spikesim, early_exit, Crossbar: the network on hardware
"""
from shared_core import registry as _registry
from shared_core import temporal as _temporal_core

from . import _host, functional, layer, model, neuron, surrogate
from ._temporal import HOST as _HOST
from .retrofit import NEURONS as _NEURONS
from .retrofit import report, restore, retrofit, substitute
from .sharing import share

__all__ = ["functional", "layer", "model", "neuron", "register", "report", "restore", "retrofit", "share", "substitute",
           "surrogate"]


def register() -> None:
    """Puts our neurons and surrogates, and those other packages registered, into SpikingJelly's namespaces.

    Runs on import; calling it again is fine. Names of SpikingJelly itself are never replaced.
    """
    surrogate.register()
    for entry in _NEURONS:
        _registry.register(entry)
    _registry.serve("spikingjelly", _host.neuron)
    _temporal_core.register(_HOST)


register()
