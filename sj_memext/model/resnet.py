"""ResNet19 of EfficientLIF-Net: one convolution, stages of 3, 3 and 2 basic blocks, and one linear layer."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from torch import Tensor, nn

from shared_core.errors import MemextError
from shared_core.lif_memory import RESNET19_BLOCKS, RESNET19_WIDTHS

from .._host import layer
from ._efficient_lif import Parts, build, check_counts

__all__ = ["BasicBlock", "ResNet19", "resnet19"]


class BasicBlock(nn.Module):
    """neuron2(conv2(neuron1(conv1(x))) + shortcut(x)): the shortcut is added before the neuron fires."""

    def __init__(self, inputs: int, outputs: int, stride: int, parts: Parts):
        super().__init__()
        self.conv1 = nn.Sequential(*parts.conv(inputs, outputs, stride=stride))
        self.neuron1 = parts.neuron()
        self.conv2 = nn.Sequential(*parts.conv(outputs, outputs))
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else nn.Sequential(
            *parts.conv(inputs, outputs, kernel=1, stride=stride, grouped=False))
        self.neuron2 = parts.neuron()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron2(self.conv2(self.neuron1(self.conv1(x))) + self.shortcut(x))


class ResNet19(nn.Module):
    """stem: convolution, norm, neuron; stages: each begins with a block of stride 2; pool: the mean over height and
    width; flatten; head: the linear layer."""

    def __init__(self, num_classes: int, in_channels: int, widths: Sequence[int], parts: Parts):
        super().__init__()
        first, *widths = widths
        self.stem = nn.Sequential(*parts.conv(in_channels, first, grouped=False), parts.neuron())
        stages, inputs = [], first
        for width, blocks in zip(widths, RESNET19_BLOCKS):
            stages.append(nn.Sequential(*(BasicBlock(width if i else inputs, width, 1 if i else 2, parts)
                                          for i in range(blocks))))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.pool = layer.AdaptiveAvgPool2d(1)
        self.flatten = layer.Flatten()
        self.head = layer.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.pool(self.stages(self.stem(x)))))

    def sharing_groups(self, per_stage: int = 2) -> list[list[str]]:
        """Neurons that [L] gives one membrane. per_stage=2: the first neurons of a stage's blocks share one and the
        second neurons another, which gives the paper's 1.31 MiB; 1: all of a stage, as in the authors' code."""
        if per_stage not in (1, 2):
            raise MemextError(f"ResNet19.sharing_groups: per_stage={per_stage!r}; allowed: 1, 2")
        found = []
        for stage, blocks in enumerate(self.stages):
            names = [[f"stages.{stage}.{i}.neuron{which}" for which in (1, 2)] for i in range(len(blocks))]
            found += [list(chain(*names))] if per_stage == 1 else [list(column) for column in zip(*names)]
        return found


def resnet19(num_classes: int = 10, in_channels: int = 3, *, sharing: str | None = None,
             spiking_neuron: Callable[..., nn.Module] | None = None, step_mode: str = "m", batch_norm: bool = True,
             widths: Sequence[int] = RESNET19_WIDTHS, conv_groups: int = 1, **kwargs) -> ResNet19:
    """EfficientLIF-Net's ResNet19 (Table I): x_seq [T, N, in_channels, H, W] -> [T, N, num_classes]; the class scores
    are the mean over T.

    sharing: None, "L", "C#2", "C#4", "C#8", "L+C#2", ...: who shares a membrane (Section IV-A); [L] is two membranes a
        stage. Where [L] is in it, time is stepped outermost and batch norm has the statistics of each step.
    spiking_neuron, kwargs: class and options of every neuron; default: the paper's (see _efficient_lif.Parts).
    step_mode: "m", or "s" to step through time: [N, ...] -> [N, num_classes].
    widths: channels of the stem and of the three stages. (128, 128, 256, 512) is what the authors' code without sharing
        trains; the paper's memory figures, sharing or not, are of the default.
    conv_groups: groups of every 3x3 convolution but the first (Table III).
    Raises MemextError: a count that is not positive, widths that are not four, a sharing that is not known, channels
        that the groups do not divide.
    """
    check_counts("resnet19", num_classes=num_classes, in_channels=in_channels, conv_groups=conv_groups)
    if len(widths) != len(RESNET19_WIDTHS) or any(width % conv_groups for width in widths):
        raise MemextError(f"resnet19: widths={tuple(widths)} with conv_groups={conv_groups}; allowed: "
                          f"{len(RESNET19_WIDTHS)} widths, each a multiple of conv_groups")
    net = ResNet19(num_classes, in_channels, widths, Parts(spiking_neuron, kwargs, batch_norm, conv_groups))
    return build(net, sharing, step_mode)
