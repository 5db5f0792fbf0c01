"""What neurons' membranes take, by the accounting of EfficientLIF-Net (Section V-B): analytic, nothing is run.

    lif_memory("resnet19", 32, sharing="L+C#2").forward_mib            # 0.656
    lif_memory([(64, 16, 16)] * 3, groups=[[0, 1, 2]]).backward_mib    # three layers, one membrane
    lif_memory(net, x)                                                 # the neurons of a built network

Membranes are counted for one sample, 32 bits each, in MiB (the paper writes MB). In the forward pass every membrane is
there once. For the backward pass ordinary backpropagation stores all membranes of all time steps: T times the forward
figure. Where membranes are shared, the paper stores the last one only and computes the others from it (Section IV-C),
so its backward figure is the forward one, for layers of the same network that share with nobody too. Of a floating
point machine that is too little to ask (Eq. 21 and 22 divide by the leak once a layer and step): what the
implementation keeps is measured by `memory.measure`, not by this.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from .errors import MemextError
from .report import text_table

__all__ = ["RESNET19_BLOCKS", "RESNET19_WIDTHS", "VGG16_DEPTHS", "VGG16_NARROW", "VGG16_WIDTHS", "LifMemory",
           "Membrane", "Sharing", "lif_memory", "sharing_of"]

VGG16_WIDTHS, VGG16_DEPTHS = (128, 256, 256, 512, 512), (2, 2, 3, 3, 3)
VGG16_NARROW = (128, 128, 256, 512, 512)  # of the authors' code of the shared variants
RESNET19_WIDTHS, RESNET19_BLOCKS = (128, 256, 512, 512), (3, 3, 2)
PAPER_STEPS = 5
_BYTES = 4
_MIB = 2 ** 20


class Sharing(NamedTuple):
    """layers: layers of one activation size share a membrane (Eq. 4-6).
    channels: groups of channels that share one (Eq. 7-11); 1: none."""

    layers: bool = False
    channels: int = 1

    def __str__(self):
        parts = ["L"] * self.layers + [f"C#{self.channels}"] * (self.channels > 1)
        return "+".join(parts) or "baseline"


def sharing_of(text: str | Sharing | None) -> Sharing:
    """The paper's notation: None or "baseline", "L", "C#2", "L+C#4", with any number of groups."""
    if isinstance(text, Sharing):
        return text
    found = re.fullmatch(r"(L)?(\+)?(?:C#([1-9]\d*))?", text or "") if isinstance(text, str | None) else None
    if text in (None, "baseline"):
        return Sharing()
    if not text or found is None or bool(found[2]) != bool(found[1] and found[3]):
        raise MemextError(f"sharing={text!r}; allowed: None, 'baseline', 'L' (layers), 'C#N' (N groups of channels), "
                          "'L+C#N'")
    return Sharing(bool(found[1]), int(found[3] or 1))


@dataclass(frozen=True)
class Membrane:
    """One membrane. shape: (C, ...) of an activation it serves, of one sample.  layers: who uses it, in order.
    channels: groups of channels it serves in turn."""

    shape: tuple[int, ...]
    layers: tuple[str, ...]
    channels: int = 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape) // self.channels

    @property
    def shared(self) -> bool:
        return len(self.layers) > 1 or self.channels > 1


@dataclass(frozen=True)
class LifMemory:
    """Of one sample. The figures in MiB are exact; the paper's tables round them (see `memext report --lif`)."""

    membranes: tuple[Membrane, ...]
    time_steps: int

    @property
    def forward_bytes(self) -> int:
        return _BYTES * sum(m.elements for m in self.membranes)

    @property
    def backward_bytes(self) -> int:
        return self.forward_bytes * (1 if any(m.shared for m in self.membranes) else self.time_steps)

    @property
    def forward_mib(self) -> float:
        return self.forward_bytes / _MIB

    @property
    def backward_mib(self) -> float:
        return self.backward_bytes / _MIB

    def to_dict(self) -> dict:
        """The figures and the membranes, as JSON types."""
        return {"time_steps": self.time_steps, "forward_mib": self.forward_mib, "backward_mib": self.backward_mib,
                "forward_bytes": self.forward_bytes, "backward_bytes": self.backward_bytes,
                "membranes": [{"shape": list(m.shape), "layers": list(m.layers), "channels": m.channels,
                               "bytes": _BYTES * m.elements} for m in self.membranes]}

    def table(self) -> str:
        """A line per membrane, and the sums."""
        lines = [(", ".join(m.layers), "x".join(map(str, m.shape)), f"C#{m.channels}" if m.channels > 1 else "",
                  f"{_BYTES * m.elements / _MIB:.4f} MiB") for m in self.membranes]
        sums = [(f"forward, {len(self.membranes)} membranes of one sample", "", "", f"{self.forward_mib:.4f} MiB"),
                (f"backward, T = {self.time_steps}", "", "", f"{self.backward_mib:.4f} MiB")]
        return text_table([*lines, *sums], ("membrane of", "activation", "sharing", "size"))


def lif_memory(network: str | Sequence[Sequence[int]] | nn.Module, sample: int | Sequence[int] | Tensor | None = None,
               *, sharing: str | Sharing | None = None, time_steps: int | None = None,
               groups: Sequence[Sequence[int]] | None = None, widths: Sequence[int] | None = None) -> LifMemory:
    """Membrane memory of one sample: EfficientLIF-Net's "LIF memory" (Table I and II).

    network: "vgg16", "resnet19" or "har_net"; or the shape (C, ...) of every layer's activation, in order; or a built
        network of a framework whose adapter is installed.
    sample: of an architecture, the height and width of the image (one number: both), or the length of a piece; of a
        built network, an input, batch included, or its shape; of shapes, nothing.
    sharing: as in `sharing_of`. Of a built network, nothing: it is counted as it is.
    time_steps: T of the baseline's backward figure; default: that of the sample in multi-step mode, else the paper's 5.
    groups: layers that share a membrane under [L], numbers from 0, one list per membrane; of an architecture, the
        default is the paper's, and of shapes "L" without it joins consecutive equal ones.
    widths: of an architecture: channels of the stages, as its function in sj_memext.model takes them.
    Returns: LifMemory.
    Raises MemextError: an architecture that is not known, layers of unequal shape in a group, channels that the groups
        do not divide, an argument that this kind of network does not have.
    """
    if isinstance(network, nn.Module):
        from ._lif_built import built

        _refuse("of a built network", sharing=sharing, groups=groups, widths=widths)
        return built(network, sample, time_steps)
    how = sharing_of(sharing)
    steps = _positive("time_steps", PAPER_STEPS if time_steps is None else time_steps)
    if isinstance(network, str):
        from ._lif_networks import activations

        layers, paper = activations(network, sample, widths)
        groups = paper if groups is None else groups
    else:
        _refuse("of a list of shapes", sample=sample, widths=widths)
        layers = [tuple(_positive("a layer's shape", n) for n in shape) for shape in network]
        groups = _consecutive(layers) if groups is None else groups
    return LifMemory(_membranes(layers, groups if how.layers else [], how.channels), steps)


def _membranes(layers: list[tuple[int, ...]], groups: Sequence[Sequence[int]], channels: int) -> tuple[Membrane, ...]:
    """One membrane for each group, and one for each layer in none."""
    owner: dict[int, int] = {}
    for number, group in enumerate(groups):
        for i in group:
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(layers) or i in owner:
                raise MemextError(f"lif_memory: groups={groups!r} names layer {i!r}; allowed: each of 0 to "
                                  f"{len(layers) - 1} once at most")
            owner[i] = number
        if len({layers[i] for i in group}) > 1:
            raise MemextError(f"lif_memory: layers {list(group)} cannot share a membrane: their activations are "
                              f"{', '.join(str(layers[i]) for i in group)}")
    odd = next((i for i, shape in enumerate(layers) if shape[0] % channels), None)
    if odd is not None:
        raise MemextError(f"lif_memory: the {layers[odd][0]} channels of layer {odd} cannot be divided into {channels} "
                          "groups")
    found: dict[object, list[int]] = {}
    for i in range(len(layers)):
        found.setdefault(("group", owner[i]) if i in owner else i, []).append(i)
    return tuple(Membrane(layers[members[0]], tuple(map(str, members)), channels) for members in found.values())


def _consecutive(layers: list[tuple[int, ...]]) -> list[list[int]]:
    found: list[list[int]] = []
    for i, shape in enumerate(layers):
        if found and layers[found[-1][-1]] == shape:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _positive(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MemextError(f"lif_memory: {what} is {value!r}; allowed: a positive whole number")
    return value


def _refuse(what: str, **arguments) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise MemextError(f"lif_memory: {what} there is no {name}; leave it out")
