"""SpikingJelly's model zoo at small sizes, and how its nets are woken up.

    net, x = ZOO["sew_resnet18-ADD"].make()    # with training_steps: check(net, "balanced", native_run(net, x))
"""
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import (
    maxformer,
    ms_resnet,
    parametric_lif_net,
    qkformer,
    sew_resnet,
    spike_driven_transformer,
    spikformer,
    spiking_resnet,
    spiking_vgg,
)
from torch import Tensor, nn
from training_steps import neurons

# ---- nodes ------------------------------------------------------------------------------------------------------

def lif(**options) -> neuron.LIFNode:
    """No value at a default that would hide its being ignored."""
    return neuron.LIFNode(**{"tau": 1.7, "v_threshold": 0.6, "v_reset": -0.3, "surrogate_function": surrogate.ATan(),
                             "step_mode": "m", **options})


def plif(**options) -> neuron.ParametricLIFNode:
    return neuron.ParametricLIFNode(**{"init_tau": 1.9, "v_threshold": 0.6, "step_mode": "m", **options})


def wake(net: nn.Module, x: Tensor, rate: float = 0.25) -> nn.Module:
    """Gives every neuron, in the order in which they run, the threshold at which `rate` of it fires on this input.

    An untrained net of the zoo fires at 0 to 5 %, less with every layer, and tests nothing.
    """
    done = set()

    def search(node: neuron.BaseNode, args: tuple[Tensor]) -> None:
        if node in done:
            return
        done.add(node)
        low = (node.v_reset or 0.0) + 0.02
        high = low + 2 * args[0].abs().max().item() + 0.1
        for _ in range(14):
            node.v_threshold = (low + high) / 2
            node.reset()
            fired = node.forward(args[0]).mean().item()  # past the hooks
            low, high = (node.v_threshold, high) if fired > rate else (low, node.v_threshold)
        node.v_threshold = round(high, 4)
        node.reset()

    _with_hooks(net, x, lambda node: node.register_forward_pre_hook(search))
    return net


def firing(net: nn.Module, x: Tensor) -> list[float]:
    """Firing rate of every call of a neuron."""
    rates = []
    _with_hooks(net, x, lambda node: node.register_forward_hook(
        lambda m, args, out: rates.append(out.count_nonzero().item() / out.numel())))
    return rates


def _with_hooks(net: nn.Module, x: Tensor, hook: Callable) -> None:
    handles = [hook(node) for node in neurons(net)]
    functional.reset_net(net)
    with torch.no_grad():
        net(x)
    functional.reset_net(net)
    for handle in handles:
        handle.remove()


def assert_awake(net: nn.Module, x: Tensor) -> None:
    """10 to 40 % fire over all, and nine of ten neuron layers fire neither (almost) never nor (almost) always."""
    rates = firing(net, x)
    mean, useful = sum(rates) / len(rates), sum(0.02 < r < 0.9 for r in rates) / len(rates)
    print(f"firing rate {mean:.3f}, from {min(rates):.3f} to {max(rates):.3f} over {len(rates)} calls of neurons")
    assert 0.1 <= mean <= 0.4 and useful >= 0.9, [round(r, 3) for r in rates]


# ---- the zoo ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Model:
    """A net of the zoo. build(): the framework's net in its default step mode; shape: of its input."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    grad_x: bool = True
    rate: float = 0.25
    slow: bool = False

    def make(self) -> tuple[nn.Module, Tensor]:
        """(net, input): the same at every call; multi-step, in training mode, awake."""
        torch.manual_seed(3)
        net = self.build()
        functional.set_step_mode(net, "m")
        net, x = net.to(self.dtype), torch.randn(self.shape, dtype=self.dtype)
        with torch.random.fork_rng():
            wake(net, x, self.rate)
        return net, x


def _if(**o) -> dict:
    return {"spiking_neuron": neuron.IFNode, "v_reset": None, "surrogate_function": surrogate.ATan(alpha=1.5), **o}


def _lif(**o) -> dict:
    return {"spiking_neuron": neuron.LIFNode, "tau": 1.7, "v_reset": -0.3, "surrogate_function": surrogate.ATan(), **o}


def _plif(**o) -> dict:
    return {"spiking_neuron": neuron.ParametricLIFNode, "init_tau": 1.9, "surrogate_function": surrogate.Sigmoid(3.0),
            **o}


def _vgg(name: str, width: int = 8, **o) -> Callable:
    """The builder's layers, `width` times narrower. Its classifier alone has 120 million weights: a small one."""
    def build() -> nn.Module:
        letter, norm = {"11": "A", "16": "D"}[name[:2]], name.endswith("bn")
        cfg = [v if v == "M" else v // width for v in spiking_vgg.cfgs[letter]]
        net = spiking_vgg.SpikingVGG.__new__(spiking_vgg.SpikingVGG)
        nn.Module.__init__(net)
        node = {k: v for k, v in o.items() if k != "spiking_neuron"}
        net.features = net.make_layers(cfg, batch_norm=norm, neuron=o["spiking_neuron"], **node)
        net.avgpool = layer.AdaptiveAvgPool2d((1, 1))
        net.classifier = nn.Sequential(layer.Linear(512 // width, 32), o["spiking_neuron"](**copy.deepcopy(node)),
                                       layer.Dropout(), layer.Linear(32, 10))
        net._initialize_weights()
        return net
    return build


class _Thin:
    """The zoo's residual nets with an eighth of the channels in their blocks."""

    def _make_layer(self, block, planes, *args, **kwargs):
        return super()._make_layer(block, planes // 8, *args, **kwargs)


class ThinSEW(_Thin, sew_resnet.SEWResNet):
    pass


class ThinSpiking(_Thin, spiking_resnet.SpikingResNet):
    pass


def _thin(cls: type, block: type, layers: list[int], **o) -> Callable:
    def build() -> nn.Module:
        net = cls(block, layers, num_classes=10, **o)
        net.fc = layer.Linear(64 * block.expansion, 10)
        return net
    return build


_SEW, _DEEP = sew_resnet, [3, 4, 6, 3]
_F64 = {"dtype": torch.float64}
_32, _16 = (3, 2, 3, 32, 32), (4, 2, 3, 16, 16)

ZOO: dict[str, Model] = {
    "spiking_vgg11": Model(_vgg("11", **_if()), _32),
    "spiking_vgg11_bn": Model(_vgg("11_bn", **_lif(v_reset=None, detach_reset=True)), _32, grad_x=False),
    "spiking_vgg16": Model(_vgg("16", **_lif(decay_input=False)), _32),
    "spiking_vgg16_bn": Model(_vgg("16_bn", **_plif()), _32),
    "spiking_vgg11_bn-float64": Model(_vgg("11_bn", **_lif(detach_reset=True)), _32, **_F64),
    "spiking_resnet18": Model(_thin(ThinSpiking, spiking_resnet.BasicBlock, [2, 2, 2, 2], **_lif()), _32),
    "sew_resnet18-ADD": Model(_thin(ThinSEW, _SEW.BasicBlock, [2, 2, 2, 2], cnf="ADD", **_if(detach_reset=True)), _32),
    "sew_resnet18-AND": Model(_thin(ThinSEW, _SEW.BasicBlock, [2, 2, 2, 2], cnf="AND", **_lif()), _32, rate=0.4),
    "sew_resnet18-IAND": Model(_thin(ThinSEW, _SEW.BasicBlock, [2, 2, 2, 2], cnf="IAND", **_plif()), _32),
    "sew_resnet18-float64": Model(_thin(ThinSEW, _SEW.BasicBlock, [2, 2, 2, 2], cnf="ADD", **_lif()), _32, **_F64),
    "sew_resnet34": Model(_thin(ThinSEW, _SEW.BasicBlock, _DEEP, cnf="ADD", **_lif(detach_reset=True)), _32),
    "sew_resnet50-ADD": Model(_thin(ThinSEW, _SEW.Bottleneck, _DEEP, cnf="ADD", **_if()), _32, grad_x=False),
    "sew_resnet50-IAND": Model(_thin(ThinSEW, _SEW.Bottleneck, _DEEP, cnf="IAND", **_lif()), _32),
    "ms_resnet": Model(lambda: ms_resnet.MSResNet(T=3, num_classes=10, base_channels=8, v_reset=-0.2), (2, 3, 32, 32)),
    "max_resnet": Model(lambda: ms_resnet.MaxResNet(
        T=3, num_classes=10, layers=(1, 1, 1), base_channels=8, stem_kernel_size=3, stem_stride=1, **_plif()), _16),
    "parametric_lif_net-MNIST": Model(lambda: parametric_lif_net.MNISTNet(8, **_plif()), (3, 2, 1, 28, 28)),
    "parametric_lif_net-CIFAR10": Model(lambda: parametric_lif_net.CIFAR10Net(8, **_plif(detach_reset=True)), _32),
    "parametric_lif_net-DVS": Model(lambda: parametric_lif_net.CIFAR10DVSNet(4, **_plif(v_reset=None)),
                                    (3, 2, 2, 128, 128), slow=True),
    "spikformer": Model(lambda: spikformer.Spikformer(T=3, img_size_h=16, img_size_w=16, patch_size=4, num_classes=10,
                                                      embed_dims=32, num_heads=4, depths=2), (2, 3, 16, 16)),
    "spikformer-LIF": Model(lambda: spikformer.Spikformer(
        T=3, img_size_h=16, img_size_w=16, patch_size=4, num_classes=10, embed_dims=32, num_heads=4, depths=1,
        **_lif()), _16),
    "qkformer": Model(lambda: qkformer.QKFormer(T=3, num_classes=10, embed_dims=32, num_heads=(1, 2, 4),
                                                depths=(1, 1, 1), mlp_ratio=2.0), (2, 3, 32, 32)),
    "spike_driven_transformer": Model(lambda: spike_driven_transformer.SpikeDrivenTransformer(
        T=3, num_classes=10, embed_dims=32, num_heads=4, depths=2, mlp_ratio=2.0, pooling_stat="0011"),
        (2, 3, 16, 16)),
    "maxformer": Model(lambda: maxformer.MaxFormer(T=3, num_classes=10, embed_dims=32, depths=(1, 1, 1), mlp_ratio=2.0,
                                                   **_lif()), (2, 3, 32, 32)),
    "maxformer-cifar": Model(lambda: maxformer.MaxFormer(T=3, num_classes=10, embed_dims=32, depths=(1, 1, 1),
                                                         mlp_ratio=1.0, cifar=True), (2, 3, 16, 16)),
}
# At the builders' own widths, where they are constants.
ZOO |= {
    "full-spiking_vgg11_bn": Model(_vgg("11_bn", width=1, **_lif()), _32, slow=True),
    "full-spiking_resnet18": Model(lambda: spiking_resnet.spiking_resnet18(num_classes=10, **_lif()), _32, slow=True),
    "full-sew_resnet18": Model(lambda: sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", **_if()), _32, slow=True),
    "full-sew_resnet34": Model(lambda: sew_resnet.sew_resnet34(num_classes=10, cnf="ADD", **_lif()), _32, slow=True),
    "full-sew_resnet50": Model(lambda: sew_resnet.sew_resnet50(num_classes=10, cnf="ADD", **_plif()), _32, slow=True),
    "full-ms_resnet18": Model(lambda: ms_resnet.ms_resnet18(T=3, num_classes=10), (2, 3, 32, 32), slow=True),
    "full-spikformer_ti": Model(lambda: spikformer.Spikformer(
        T=4, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=256, depths=4), (2, 3, 32, 32),
        slow=True),
}
