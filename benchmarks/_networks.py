"""SpikingJelly networks, the ways to train them, and one training step: what the step and memory benchmarks share."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional, layer, memopt, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spikformer, spiking_vgg
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from sj_memext.retrofit import METHODS

NATIVE = "native"
OURS = tuple(METHODS)
MEMOPT = tuple(f"memopt {level}" for level in (1, 2, 3, 4))


class OutOfTime(RuntimeError):
    """A search that has had its share."""


@dataclass(frozen=True)
class Network:
    """build() makes it, multi-step.  shape: of a batch, [T, N, C, H, W].

    For memopt, as SpikingJelly's own builders and example use it: the modules to checkpoint, how to split them, and
    whether inputs that look binary are kept as bits (not where residual sums can be 2).
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    blocks: type
    split: Callable[[nn.Module], tuple[nn.Module, ...]]
    compress: bool
    classes: int = 10


class Block(nn.Sequential):
    """convolution, norm, neuron: what memopt's own VGG example checkpoints as one."""


def _can_chunk(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, neuron.BaseNode))


def _atan() -> dict[str, object]:
    return {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}


def grouped(features: nn.Sequential) -> nn.Sequential:
    """The same modules, every convolution, norm and neuron in a Block."""
    parts, blocks = list(features), []
    while parts:
        size = 3 if isinstance(parts[0], nn.Conv2d) else 1
        taken, parts = parts[:size], parts[size:]
        blocks.append(Block(*taken) if size == 3 else taken[0])
    return nn.Sequential(*blocks)


def vgg11() -> nn.Module:
    net = spiking_vgg.spiking_vgg11_bn(num_classes=10, **_atan())
    net.features = grouped(net.features)
    functional.set_step_mode(net, "m")
    return net


def sew(make: Callable[..., nn.Module], classes: int) -> nn.Module:
    net = make(num_classes=classes, cnf="ADD", **_atan())
    functional.set_step_mode(net, "m")
    return net


def plain(depth: int, width: int) -> nn.Module:
    """`depth` times convolution, norm, LIF at one width, and a classifier."""
    blocks = [Block(layer.Conv2d(3 if i == 0 else width, width, 3, padding=1, bias=False), layer.BatchNorm2d(width),
                    neuron.LIFNode(surrogate_function=surrogate.ATan())) for i in range(depth)]
    net = nn.Sequential(*blocks, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(width, 10))
    functional.set_step_mode(net, "m")
    return net


def _one_block_a_stage(**options) -> nn.Module:
    return sew_resnet.SEWResNet(sew_resnet.BasicBlock, [1, 1, 1, 1], **options)


_BLOCK = (Block, lambda block: tuple(block.children()), True)
_SEW = (sew_resnet.BasicBlock, sew_resnet.SEWResNet34Builder._memopt_split, False)
_FORMER = (spikformer.SpikformerBlock, spikformer.SpikformerBuilder._memopt_split, False)

def plain_network(depth: int, width: int, shape: tuple[int, ...]) -> Network:
    return Network("plain", lambda: plain(depth, width), shape, *_BLOCK)


NETWORKS = (
    Network("spiking_vgg11_bn", vgg11, (16, 32, 3, 32, 32), *_BLOCK),
    Network("sew_resnet18", lambda: sew(sew_resnet.sew_resnet18, 200), (8, 64, 3, 64, 64), *_SEW, 200),
    Network("spikformer_s", lambda: spikformer.spikformer_s(T=4, **_atan()), (4, 32, 3, 224, 224), *_FORMER, 1000),
    Network("sew_resnet34", lambda: sew(sew_resnet.sew_resnet34, 1000), (4, 32, 3, 224, 224), *_SEW, 1000),
)
TINY = (  # every way of building and splitting, at sizes that a CPU steps through in no time
    plain_network(2, 4, (2, 2, 3, 8, 8)),
    Network("sew_resnet", lambda: sew(_one_block_a_stage, 10), (2, 1, 3, 16, 16), *_SEW),
    Network("spikformer", lambda: spikformer.Spikformer(T=2, img_size_h=16, img_size_w=16, patch_size=4, num_classes=10,
                                                        embed_dims=16, num_heads=2, depths=1, **_atan()),
            (2, 1, 3, 16, 16), *_FORMER),
)


class Training:
    """A network under one method, on a device, with its batch and optimizer; `step()` is one training step."""

    def __init__(self, network: Network, method: str, device: torch.device, autocast: bool, search_s: float = 30.0):
        torch.manual_seed(0)  # the same weights and batch for every method
        self.network, self.autocast, self.device = network, autocast, device
        with device:
            self.net = network.build()
        images = torch.randn(network.shape[1:], device=device)
        self.x = images.unsqueeze(0).repeat(network.shape[0], 1, 1, 1, 1)
        self.labels = torch.randint(network.classes, (network.shape[1],), device=device)
        self.search = 0.0
        if method in METHODS:
            sj_memext.retrofit(self.net, method)
        elif method in MEMOPT:
            self._memopt(int(method[-1]), search_s)
        elif method != NATIVE:
            raise ValueError(f"method {method!r}; allowed: {(NATIVE, *OURS, *MEMOPT)}")
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)

    def _memopt(self, level: int, search_s: float) -> None:
        start = time.monotonic()

        def forward(net):
            if time.monotonic() - start > search_s:
                raise OutOfTime(f"its search took more than {search_s:.0f} s")
            functional.reset_net(net)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                out = net(self.x)
            functional.reset_net(net)
            return out

        memopt.optimize_memory(self.net, self.network.blocks, forward, level=level, compress=self.network.compress,
                               split_fn=self.network.split, can_chunk=_can_chunk)
        functional.invalidate_reset_cache(self.net)
        self.search = time.monotonic() - start

    def loss_and_gradients(self) -> Tensor:
        functional.reset_net(self.net)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = cross_entropy(self.net(self.x).mean(0).float(), self.labels)
        loss.backward()
        return loss

    def step(self) -> None:
        self.loss_and_gradients()
        self.optimizer.step()
        functional.reset_net(self.net)

    def rest(self) -> None:
        """Between steps: no gradients, no states."""
        self.optimizer.zero_grad(set_to_none=True)
        functional.reset_net(self.net)
