"""VGG16 of EfficientLIF-Net: 13 convolutions in five stages of one activation size each, and one linear layer."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from shared_core.errors import MemextError
from shared_core.lif_memory import VGG16_DEPTHS, VGG16_WIDTHS

from .._host import layer
from ._efficient_lif import Parts, build, check_counts

__all__ = ["VGG16", "vgg16"]


class VGG16(nn.Sequential):
    """features: five stages of convolution, norm and neuron, max pooling between them; pool: the mean over height and
    width; flatten; head: the linear layer."""

    def __init__(self, num_classes: int, in_channels: int, widths: Sequence[int], parts: Parts):
        stages = []
        for width, depth in zip(widths, VGG16_DEPTHS):
            stage: list[nn.Module] = [layer.MaxPool2d(2, 2)] if stages else []
            for _ in range(depth):
                first = not stages and not stage
                stage += [*parts.conv(in_channels, width, grouped=not first), parts.neuron()]
                in_channels = width
            stages.append(nn.Sequential(*stage))
        super().__init__()
        self.features = nn.Sequential(*stages)
        self.pool = layer.AdaptiveAvgPool2d(1)
        self.flatten = layer.Flatten()
        self.head = layer.Linear(in_channels, num_classes)

    def sharing_groups(self) -> list[list[str]]:
        """Neurons that [L] gives one membrane: those of a stage. The first stage's two keep their own, as the paper's
        memory and its authors' code have it."""
        each = len(self.features[0]) // VGG16_DEPTHS[0]  # modules of a layer, the neuron last; a pool before them
        return [[f"features.{stage}.{i}" for i in range(each, len(self.features[stage]), each)]
                for stage in range(1, len(self.features))]


def vgg16(num_classes: int = 10, in_channels: int = 3, *, sharing: str | None = None,
          spiking_neuron: Callable[..., nn.Module] | None = None, step_mode: str = "m", batch_norm: bool = True,
          widths: Sequence[int] = VGG16_WIDTHS, conv_groups: int = 1, **kwargs) -> VGG16:
    """EfficientLIF-Net's VGG16 (Table I): x_seq [T, N, in_channels, H, W] -> [T, N, num_classes]; the class scores are
    the mean over T. H and W: at least 16, every height and width from there on.

    sharing: None, "L", "C#2", "C#4", "C#8", "L+C#2", ...: who shares a membrane (Section IV-A). Where [L] is in it,
        time is stepped outermost and batch norm has the statistics of each step.
    spiking_neuron, kwargs: class and options of every neuron; default: the paper's (see _efficient_lif.Parts).
    step_mode: "m", or "s" to step through time: [N, ...] -> [N, num_classes].
    widths: channels of the five stages. The published figures of the variants with [L], and the authors' code of all
        shared ones, are of a network with 128 channels in stage two: (128, 128, 256, 512, 512).
    conv_groups: groups of every convolution but the first (Table III).
    Raises MemextError: a count that is not positive, widths that are not five, a sharing that is not known, channels
        that the groups do not divide.
    """
    check_counts("vgg16", num_classes=num_classes, in_channels=in_channels, conv_groups=conv_groups)
    if len(widths) != len(VGG16_DEPTHS) or any(width % conv_groups for width in widths):
        raise MemextError(f"vgg16: widths={tuple(widths)} with conv_groups={conv_groups}; allowed: "
                          f"{len(VGG16_DEPTHS)} widths, each a multiple of conv_groups")
    net = VGG16(num_classes, in_channels, widths, Parts(spiking_neuron, kwargs, batch_norm, conv_groups))
    return build(net, sharing, step_mode)
