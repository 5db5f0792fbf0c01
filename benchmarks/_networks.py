"""The SpikingJelly networks that the step and memory benchmarks train, and the least memory that a step needs."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spikformer, spiking_vgg
from torch import nn


@dataclass(frozen=True)
class Network:
    """build() makes it, multi-step.  shape: of a batch, [T, N, C, H, W].

    blocks: the modules that memopt checkpoints as one, as SpikingJelly's own builders and example have it; split: how
    it may take one apart.  stem: modules outside these blocks that could be checkpointed too.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    blocks: tuple[type, ...]
    split: Callable[[nn.Module], tuple[nn.Module, ...]]
    classes: int = 10
    stem: tuple[type, ...] = ()

    def at(self, steps: int | None = None, batch: int | None = None) -> Network:
        """The same with another number of time steps or another batch size."""
        return replace(self, shape=(steps or self.shape[0], batch or self.shape[1], *self.shape[2:]))


# ---- building --------------------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """convolution, norm, neuron: what memopt's own VGG example checkpoints as one."""


def _block(inputs: int, outputs: int) -> Block:
    return Block(layer.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer.BatchNorm2d(outputs),
                 neuron.LIFNode(surrogate_function=surrogate.ATan()))


def _classified(features: list[nn.Module], width: int) -> nn.Module:
    net = nn.Sequential(*features, layer.Flatten(), layer.Linear(width, 10))
    functional.set_step_mode(net, "m")
    return net


def vgg(plan: str) -> nn.Module:
    """Spiking VGG with batch norm for 32x32 images: SpikingJelly's feature plan ("A" is VGG-11) and one linear layer.

    SpikingJelly's own classifier is made for 224x224: at 32x32, its 119 M parameters would be most of the memory.
    """
    features, width = [], 3
    for outputs in spiking_vgg.cfgs[plan]:
        if outputs == "M":
            features.append(layer.MaxPool2d(2, 2))
        else:
            features.append(_block(width, outputs))
            width = outputs
    return _classified(features, width)


def plain(depth: int, width: int) -> nn.Module:
    """`depth` times convolution, norm, LIF at one width, and a classifier."""
    blocks = [_block(width if i else 3, width) for i in range(depth)]
    return _classified([*blocks, layer.AdaptiveAvgPool2d(1)], width)


def sew(make: Callable[..., nn.Module], classes: int) -> nn.Module:
    net = make(num_classes=classes, cnf="ADD", spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan())
    functional.set_step_mode(net, "m")
    return net


def former(side: int, patch: int, width: int, heads: int, depth: int, classes: int = 10) -> nn.Module:
    """Spikformer with the neurons that its authors set."""
    return spikformer.Spikformer(img_size_h=side, img_size_w=side, patch_size=patch, num_classes=classes,
                                 embed_dims=width, num_heads=heads, depths=depth)


def _one_block_a_stage(**options) -> nn.Module:
    return sew_resnet.SEWResNet(sew_resnet.BasicBlock, [1, 1, 1, 1], **options)


# ---- the networks ----------------------------------------------------------------------------------------------------

_BLOCK = ((Block,), lambda block: tuple(block.children()) if isinstance(block, Block) else ())
_SEW = ((sew_resnet.BasicBlock,), sew_resnet.SEWResNet34Builder._memopt_split)
_FORMER = ((spikformer.SpikformerBlock,), spikformer.SpikformerBuilder._memopt_split)
_FORMER_STEM = (spikformer.SpikformerConv2dBNLIF,)


def plain_network(depth: int, width: int, shape: tuple[int, ...]) -> Network:
    return Network("plain", lambda: plain(depth, width), shape, *_BLOCK)


VGG11, VGG13, VGG16 = (Network(name, lambda plan=plan: vgg(plan), (16, 16, 3, 32, 32), *_BLOCK)
                       for name, plan in (("vgg11", "A"), ("vgg13", "B"), ("vgg16", "D")))
SEW_RESNET18 = Network("sew_resnet18", lambda: sew(sew_resnet.sew_resnet18, 200), (4, 16, 3, 64, 64), *_SEW, 200)
SPIKFORMER = Network("spikformer", lambda: former(32, 4, 256, 8, 2), (4, 16, 3, 32, 32), *_FORMER,
                     stem=_FORMER_STEM)
SEW_RESNET34 = Network("sew_resnet34", lambda: sew(sew_resnet.sew_resnet34, 1000), (4, 32, 3, 224, 224), *_SEW, 1000)
SPIKFORMER_8_384 = Network("spikformer_8_384", lambda: former(224, 16, 384, 12, 8, 1000), (4, 32, 3, 224, 224),
                           *_FORMER, 1000, _FORMER_STEM)
TINY = (  # every way of building and splitting, at sizes that a CPU steps through in no time
    plain_network(2, 4, (2, 2, 3, 8, 8)),
    Network("tiny sew_resnet", lambda: sew(_one_block_a_stage, 10), (2, 1, 3, 16, 16), *_SEW),
    Network("tiny spikformer", lambda: former(16, 4, 16, 2, 1), (2, 1, 3, 16, 16), *_FORMER,
            stem=_FORMER_STEM),
)
BY_NAME = {network.name: network for network in
           (VGG11, VGG13, VGG16, SEW_RESNET18, SPIKFORMER, SEW_RESNET34, SPIKFORMER_8_384, *TINY)}


# ---- the floor -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """What any exact method keeps or passes through: parameters and their gradients, one bit per spike, and two buffers
    of the largest layer (a convolution reads one and writes one).

    parameter_bytes; spikes: elements that neurons emit in a step, over all layers and time steps; largest_bytes: of
    the largest layer's output, in the dtype that it has.
    """

    parameter_bytes: int
    spikes: int
    largest_bytes: int

    @property
    def bytes(self) -> float:
        return 2 * self.parameter_bytes + self.spikes / 8 + 2 * self.largest_bytes

    def columns(self, peak_bytes: float) -> dict[str, float]:
        """For a row with a peak over a base that holds the parameters already: they are added before comparing."""
        return {"floor, MiB": self.bytes / 2**20, "of the floor": (peak_bytes + self.parameter_bytes) / self.bytes,
                "parameters, MiB": self.parameter_bytes / 2**20}


def floor(network: Network, device: torch.device | str = "cpu", autocast: bool = False) -> Floor:
    """From one forward of one sample of the network as it is: everything that counts is proportional to the batch."""
    device, batch = torch.device(device), network.shape[1]
    with device:
        net = network.build().eval()
    found = {"spikes": 0, "largest_bytes": 0}

    def look(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor):
            size = output.numel() * output.element_size() * batch
            found["largest_bytes"] = max(found["largest_bytes"], size)
            found["spikes"] += isinstance(module, neuron.BaseNode) * output.numel() * batch

    for module in net.modules():
        if isinstance(module, neuron.BaseNode) or not list(module.children()):
            module.register_forward_hook(look)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        net(torch.zeros(network.shape[0], 1, *network.shape[2:], device=device))
    return Floor(sum(p.numel() * p.element_size() for p in net.parameters()), **found)
