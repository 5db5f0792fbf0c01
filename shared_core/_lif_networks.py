"""Activation sizes of EfficientLIF-Net's architectures, layer by layer, and which layers its [L] joins.

sj_memext.model builds the same networks; a test compares the two.
"""
from __future__ import annotations

from collections.abc import Sequence

from .errors import MemextError
from .lif_memory import RESNET19_BLOCKS, RESNET19_WIDTHS, VGG16_DEPTHS, VGG16_WIDTHS, _positive

__all__ = ["ARCHITECTURES", "activations"]

Shapes, Groups = list[tuple[int, ...]], list[list[int]]


def _vgg16(size: tuple[int, int], widths: Sequence[int]) -> tuple[Shapes, Groups]:
    """13 convolutions in five stages; the first stage's two keep their own membranes, as in the paper's figures."""
    height, width = size
    shapes: Shapes = []
    groups: Groups = []
    for channels, depth in zip(widths, VGG16_DEPTHS):
        groups.append(list(range(len(shapes), len(shapes) + depth)))
        shapes += [(channels, height, width)] * depth
        height, width = height // 2, width // 2  # max pooling
    return shapes, groups[1:]


def _resnet19(size: tuple[int, int], widths: Sequence[int]) -> tuple[Shapes, Groups]:
    """A stem and stages of 3, 3 and 2 blocks with two neurons each, the stages at stride 2. Two membranes a stage: that
    gives the paper's 1.31 MiB at 32x32; its authors' code has one a stage, which is 0.91."""
    height, width = size
    shapes, groups = [(widths[0], height, width)], []
    for channels, blocks in zip(widths[1:], RESNET19_BLOCKS):
        height, width = -(-height // 2), -(-width // 2)
        first = len(shapes)
        shapes += [(channels, height, width)] * (2 * blocks)
        groups += [list(range(first + which, len(shapes), 2)) for which in (0, 1)]
    return shapes, groups


def _har_net(size: tuple[int], widths: Sequence[int]) -> tuple[Shapes, Groups]:
    """Five convolutions with a neuron behind each, of one activation size."""
    return [(widths[0], *size)] * 5, [list(range(5))]


# name: (function, its widths, dimensions of the input, smallest size)
ARCHITECTURES = {"vgg16": (_vgg16, VGG16_WIDTHS, 2, 16), "resnet19": (_resnet19, RESNET19_WIDTHS, 2, 1),
                 "har_net": (_har_net, (128,), 1, 1)}


def activations(name: str, size: int | Sequence[int] | None, widths: Sequence[int] | None) -> tuple[Shapes, Groups]:
    """Shapes (C, ...) of the activations that neurons make, in order; numbers of those that share a membrane in [L]."""
    if name not in ARCHITECTURES:
        raise MemextError(f"lif_memory: there is no architecture {name!r}; allowed: {', '.join(ARCHITECTURES)}, a list "
                          "of activation shapes, or a built network")
    function, default, dims, smallest = ARCHITECTURES[name]
    size = (32 if size is None else size,) * dims if isinstance(size, int | None) else tuple(size)
    widths = default if widths is None else tuple(_positive("a width", n) for n in widths)
    if len(size) != dims or any(_positive("the size", n) < smallest for n in size):
        raise MemextError(f"lif_memory: the size for {name} is {size}; allowed: {dims} number{'s' * (dims > 1)}, each "
                          f"at least {smallest}")
    if len(widths) != len(default):
        raise MemextError(f"lif_memory: widths={widths}; {name} has {len(default)}, e.g. {default}")
    return function(size, widths)
