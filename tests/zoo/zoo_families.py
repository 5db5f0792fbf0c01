"""The published architectures of this folder at small sizes: how each is built, fed and trained by its own repository.

    family = FAMILIES["spikformer"]
    net, batches = family.make()             # awake: DESIGN asks that between a tenth and two fifths of neurons fire
    loss = family.step(net, *batches[0])     # forward, loss, backward, as the repository's training loop has them

A family that imports names which SpikingJelly 2.0.0 no longer has is `legacy`: sj_memext.compat brings them back.
"""
from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FAMILIES", "Family", "firing", "is_neuron", "is_of_spikingjelly"]

T, BATCH, CLASSES, STEPS = 4, 4, 10, 3
HAND_WRITTEN = ("mem_update", "LIFSpike", "OnlineLIFNode")  # neurons that are no class of a framework


def is_of_spikingjelly(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("spikingjelly.activation_based.neuron") for cls in type(module).__mro__)


def is_neuron(module: nn.Module) -> bool:
    return is_of_spikingjelly(module) or type(module).__name__ in HAND_WRITTEN


# ---- how a repository trains ----

def _classify(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    out = net(x)
    loss = F.cross_entropy(out[0] if isinstance(out, tuple) else out, labels)
    loss.backward()
    return loss.detach()


def _efficient_training(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """TET: a loss in every time step of [N, T, classes]."""
    out = net(x)
    loss = sum(F.cross_entropy(out[:, t], labels) for t in range(out.shape[1])) / out.shape[1]
    loss.backward()
    return loss.detach()


def _online(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """OTTT: a backward pass in every time step; the states of SpikingJelly's nodes are cut off between them."""
    from spikingjelly.activation_based import functional

    total = 0.0
    for _ in range(T):
        loss = F.cross_entropy(net(x), labels) / T
        loss.backward()
        functional.detach_net(net)
        total += loss.detach()
    return total


def _online_by_hand(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    total = 0.0
    for t in range(T):
        loss = F.cross_entropy(net(x, init=t == 0), labels) / T
        loss.backward()
        total += loss.detach()
    return total


# ---- the families ----

@dataclass(frozen=True)
class Family:
    """module: the file of this folder.  build(module, size): its net for images of size x size.

    layout: of a batch before [C, H, W]: "N" for images, "TN" or "NT" for sequences of events.  batch, size: of it.
    legacy: written for SpikingJelly 0.0.0.0.x.  train(net, x, labels) -> loss: forward and backward of one step.
    gain, shift: of the norms (without norms: of the convolutions), and `linear` of linear layers that feed neurons, so
        that a usual share of them fires.
    """

    name: str
    module: str
    build: Callable[[ModuleType, int], nn.Module]
    layout: str = "N"
    batch: int = BATCH
    size: int = 16
    legacy: bool = False
    train: Callable[[nn.Module, Tensor, Tensor], Tensor] = _classify
    gain: float = 1.5
    shift: float = 0.5
    linear: float = 1.0

    def load(self) -> ModuleType:
        if self.legacy:
            importlib.import_module("sj_memext.compat").install(quiet=True)  # SpikingJelly's old names
        return importlib.import_module(self.module)

    def make(self, seed: int = 3) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
        """(net in training mode, three batches of input and labels); the same at every call with the same seed."""
        torch.manual_seed(seed)
        net = self._woken(self.build(self.load(), self.size))
        return net, self.batches(seed)

    def batches(self, seed: int = 3) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [self._batch(generator) for _ in range(STEPS)]

    @property
    def events(self) -> bool:
        return "T" in self.layout

    @property
    def shape(self) -> tuple[int, ...]:
        lengths = {"N": self.batch, "T": T}
        return (*(lengths[letter] for letter in self.layout), 2 if self.events else 3, self.size, self.size)

    def step(self, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """One training step up to the gradients; states are reset after it, where there are any to reset."""
        torch.manual_seed(7)  # dropout
        loss = self.train(net, x, labels)
        self.reset(net)
        return loss

    def reset(self, net: nn.Module) -> None:
        if any(is_of_spikingjelly(m) for m in net.modules()):
            from spikingjelly.activation_based import functional

            functional.reset_net(net)

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.shape, generator=generator)
        return (x > 0.8).float() if self.events else x, torch.randint(CLASSES, (self.batch,), generator=generator)

    def _woken(self, net: nn.Module) -> nn.Module:
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        with torch.no_grad():
            for m in norms:
                m.weight.mul_(self.gain).mul_(torch.empty_like(m.weight).uniform_(0.8, 1.25))
                m.bias.add_(torch.rand_like(m.bias) * 2 * self.shift)
            for m in net.modules():
                if isinstance(m, nn.Conv2d) and not norms:
                    m.weight.mul_(self.gain)
                    m.bias.add_(self.shift)
                if isinstance(m, nn.Linear):
                    m.weight.mul_(self.linear)
        return net.train()


def _family(name: str, module: str, build: Callable, **more) -> tuple[str, Family]:
    return name, Family(name, module, build, **more)


_OLD = {"legacy": True}
_SEW = {"activation_based": "zoo_sew", "clock_driven": "zoo_sew_clock_driven", "cext": "zoo_sew_cext"}
_PLIF = {"linear": 4.0, **_OLD}
FAMILIES: dict[str, Family] = dict([
    _family("spikformer", "zoo_spikformer",
            lambda m, size: m.spikformer(img_size=size, embed_dims=32, depths=1, T=T), gain=2.0, **_OLD),
    _family("spike-driven transformer", "zoo_sdt", lambda m, size: m.SpikeDrivenTransformer(depths=1, T=T), **_OLD),
    _family("spike-driven transformer, PLIF", "zoo_sdt",
            lambda m, size: m.SpikeDrivenTransformer(depths=1, T=T, spike_mode="plif"), **_OLD),
    _family("QKFormer", "zoo_qkformer", lambda m, size: m.QKFormer(T=T), **_OLD),
    *(_family(f"SEW-ResNet {connect}, {flavour}", module, lambda m, size, connect=connect: m.ResNetN(connect_f=connect),
              legacy=flavour != "activation_based", layout="TN")
      for connect in ("ADD", "IAND") for flavour, module in _SEW.items()),
    _family("membrane-shared VGG", "zoo_shared_vgg", lambda m, size: m.SNN_VGG_layershare(), **_OLD),
    _family("reversible ResNet", "zoo_revsnn", lambda m, size: m.revs_resnet(), gain=1.0, shift=-0.1, **_OLD),
    _family("PLIF net, static", "zoo_plif", lambda m, size: m.StaticNet(size=size), **_PLIF),
    _family("PLIF net, events", "zoo_plif", lambda m, size: m.NeuromorphicNet(size=size), layout="NT", **_PLIF),
    _family("OTTT VGG, activation_based", "zoo_ottt", lambda m, size: m.OnlineVGG(), train=_online),
    _family("OTTT VGG, its own neurons", "zoo_ottt_repository", lambda m, size: m.OnlineSpikingVGG(),
            train=_online_by_hand),
    _family("MS-ResNet, mem_update", "zoo_mem_update", lambda m, size: m.MSResNet(), gain=1.0, shift=-0.2),
    _family("integer neurons, mem_update", "zoo_integer_lif", lambda m, size: m.SpikeBackbone(), gain=1.0, shift=-0.2),
    _family("TET VGG, LIFSpike", "zoo_tet", lambda m, size: m.VGGSNN(size=size), layout="NT",
            train=_efficient_training),
])


def firing(family: Family, net: nn.Module, x: Tensor) -> list[float]:
    """Share of the neurons that fire, for every call of a neuron in one forward pass (in training mode)."""
    rates = []

    def note(module: nn.Module, args: tuple, out) -> None:
        spikes = out[0] if isinstance(out, (list, tuple)) else out
        if type(module).__name__ == "OnlineLIFNode" and len(spikes) == 2 * len(args[0]):
            spikes = spikes[:len(args[0])]  # behind them lie their traces
        rates.append((spikes != 0).float().mean().item())

    handles = [m.register_forward_hook(note) for m in net.modules() if is_neuron(m)]
    kept = {name: b.clone() for name, b in net.named_buffers()}
    with torch.no_grad():
        net(x, **({"init": True} if family.train is _online_by_hand else {}))
    for name, b in net.named_buffers():
        b.copy_(kept[name])
    for handle in handles:
        handle.remove()
    family.reset(net)
    return rates
