"""The paper's networks at CIFAR size, with SpikingJelly's neurons, for the benchmarks of reversible neurons."""
from __future__ import annotations

from collections.abc import Callable

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch import nn

from benchmarks._networks import vgg

__all__ = ["NETWORKS", "STEPS", "TINY"]

STEPS = {"vgg": (1, 2, 4, 8, 12, 16, 20), "resnet": (1, 2, 4, 6, 8, 10)}  # RevSNN, Section 5.2


def _resnet(block: type, layers: list[int]) -> Callable[[], nn.Module]:
    """SpikingJelly's spiking ResNet with the stem that is usual at 32x32: 3x3, stride 1, no pooling."""
    def build() -> nn.Module:
        net = spiking_resnet.SpikingResNet(block, layers, num_classes=10, spiking_neuron=neuron.LIFNode,
                                           surrogate_function=surrogate.ATan())
        net.conv1, net.maxpool = layer.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        functional.set_step_mode(net, "m")
        return net
    return build


def _resnet19() -> nn.Module:
    from sj_memext import model

    net = model.resnet19(num_classes=10)
    functional.set_step_mode(net, "m")
    return net


_BASIC, _BOTTLENECK = spiking_resnet.BasicBlock, spiking_resnet.Bottleneck
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"vgg{n}": (lambda plan=plan: vgg(plan)) for n, plan in ((11, "A"), (13, "B"), (16, "D"), (19, "E"))},
    "resnet18": _resnet(_BASIC, [2, 2, 2, 2]), "resnet19": _resnet19, "resnet34": _resnet(_BASIC, [3, 4, 6, 3]),
    "resnet50": _resnet(_BOTTLENECK, [3, 4, 6, 3]), "resnet101": _resnet(_BOTTLENECK, [3, 4, 23, 3]),
}


def TINY() -> nn.Module:
    net = nn.Sequential(layer.Conv2d(3, 4, 3, padding=1), neuron.LIFNode(surrogate_function=surrogate.ATan()),
                        layer.Conv2d(4, 4, 3, padding=1), neuron.LIFNode(surrogate_function=surrogate.ATan()),
                        layer.Flatten(), layer.Linear(256, 10))
    functional.set_step_mode(net, "m")
    return net
