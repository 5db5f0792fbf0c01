"""The six-layer 1-D convolution net with which EfficientLIF-Net recognises human activities (Section V-D)."""
from __future__ import annotations

from collections.abc import Callable

from torch import nn

from shared_core.errors import MemextError

from .._host import layer
from ._efficient_lif import Parts, build, check_counts

__all__ = ["HARNet", "har_net"]

_HIDDEN = 5  # Conv1D(inputs, 128), 4 x Conv1D(128, 128); the sixth, Conv1D(128, classes), gives the scores


class HARNet(nn.Sequential):
    """features: five times convolution, norm, neuron; head: convolution to the classes; pool: the mean over the length;
    flatten."""

    def __init__(self, num_classes: int, in_channels: int, width: int, kernel_size: int, parts: Parts):
        super().__init__()
        features: list[nn.Module] = []
        for i in range(_HIDDEN):
            features += parts.conv(width if i else in_channels, width, kernel_size, grouped=i > 0, dims=1)
            features.append(parts.neuron())
        self.features = nn.Sequential(*features)
        self.head = layer.Conv1d(width, num_classes, kernel_size, padding=kernel_size // 2)
        self.pool = layer.AdaptiveAvgPool1d(1)
        self.flatten = layer.Flatten()

    def sharing_groups(self) -> list[list[str]]:
        """Neurons that [L] gives one membrane: all five, as all layers have one activation size."""
        each = len(self.features) // _HIDDEN
        return [[f"features.{i}" for i in range(each - 1, len(self.features), each)]]


def har_net(num_classes: int = 6, in_channels: int = 6, *, sharing: str | None = None,
            spiking_neuron: Callable[..., nn.Module] | None = None, step_mode: str = "m", batch_norm: bool = True,
            width: int = 128, kernel_size: int = 3, conv_groups: int = 1, **kwargs) -> HARNet:
    """EfficientLIF-Net's net for human activities (Table VI): x_seq [T, N, in_channels, L] -> [T, N, num_classes].

    A window of T * L samples is cut into T pieces of L samples, in order: x.unflatten(-1, (T, L)).movedim(-2, 0). The
    convolutions see the samples of a piece, the membranes carry over from piece to piece. The paper does not say how it
    divides a window, nor its kernel size.

    sharing: None, "L", "C#2", "C#4", "C#8", "L+C#2", ...: who shares a membrane (Section IV-A). Where [L] is in it,
        time is stepped outermost and batch norm has the statistics of each step.
    spiking_neuron, kwargs: class and options of every neuron; default: the paper's (see _efficient_lif.Parts).
    step_mode: "m", or "s" to step through time: [N, in_channels, L] -> [N, num_classes].
    width, kernel_size (odd): of the convolutions.  conv_groups: groups of the four in the middle (Table III).
    Raises MemextError: a count that is not positive, an even kernel size, a sharing that is not known, channels that
        the groups do not divide.
    """
    check_counts("har_net", num_classes=num_classes, in_channels=in_channels, width=width, kernel_size=kernel_size,
                 conv_groups=conv_groups)
    if kernel_size % 2 == 0 or width % conv_groups:
        raise MemextError(f"har_net: kernel_size={kernel_size}, width={width}, conv_groups={conv_groups}; allowed: an "
                          "odd kernel_size, and a width that is a multiple of conv_groups")
    net = HARNet(num_classes, in_channels, width, kernel_size, Parts(spiking_neuron, kwargs, batch_norm, conv_groups))
    return build(net, sharing, step_mode)
