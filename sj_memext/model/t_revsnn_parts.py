"""What T-RevSNN is built of: the ConvNeXt-style block without batch norm, a stage with feedback, and the stems.

Sizes and order of layers, and where weights are shared between columns, are those of the published code, whose
parameter counts are the paper's. Every neuron here is "turned off": it fires on its input alone and holds nothing from
step to step.
"""
from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_core.reversible import ReversibleBlock, ReversibleSequence
from shared_core.reversible._column_state import TurnedOn

__all__ = ["Block", "EventStage", "ScaledConv2d", "Stage", "TurnedOff", "coupled_blocks", "stem"]


class ScaledConv2d(nn.Conv2d):
    """Convolution with scaled weight standardisation (Brock et al. 2021): the weights of an output channel have mean 0
    and variance gain^2 / fan-in.

    weight = gain * (w - mean(w)) / sqrt(var(w) + eps) / sqrt(fan-in)
    """

    def __init__(self, *args, eps: float = 1e-6, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.eps = eps

    def standardised(self) -> Tensor:
        w = self.weight
        var, mean = torch.var_mean(w, dim=(1, 2, 3), keepdim=True, correction=0)
        return (w - mean) * (self.gain * ((var + self.eps) * w[0].numel()).rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)


class TurnedOff(nn.Module):
    """A neuron without temporal dynamics: v = its input (T-RevSNN Eq. 6); 0 or 1, shape of the input."""

    def __init__(self, neuron: TurnedOn):
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron.spike(x)

    def extra_repr(self) -> str:
        return f"v_threshold={self.neuron.v_threshold}, surrogate={self.neuron.surrogate.name}"


def depthwise(channels: int, kernel_size: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
    nn.init.zeros_(conv.bias)
    return conv


def pointwise(inputs: int, outputs: int) -> ScaledConv2d:
    conv = ScaledConv2d(inputs, outputs, 1)
    nn.init.zeros_(conv.bias)
    return conv


class Block(nn.Module):
    """x + gamma * DW(PW(spike(PW(DW(spike(x))))))     T-RevSNN Fig. 4, membrane shortcut

    The first pair widens by 4, the second goes back.  last: the second pair, if it belongs to several columns.
    gamma: initial value of the ReZero scale, one a channel; None: no scale. x: [N, C, H, W].
    """

    def __init__(self, channels: int, kernel_size: int, neuron: TurnedOn, gamma: float | None,
                 last: nn.Sequential | None = None):
        super().__init__()
        self.spike1, self.spike2 = TurnedOff(neuron), TurnedOff(neuron)
        self.first = nn.Sequential(depthwise(channels, kernel_size), pointwise(channels, 4 * channels))
        self.last = last_pair(channels, kernel_size) if last is None else last
        self.gamma = None if gamma is None else nn.Parameter(torch.full((1, channels, 1, 1), float(gamma)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.spike2(self.first(self.spike1(x))))
        return x + (out if self.gamma is None else out * self.gamma)


def last_pair(channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(pointwise(4 * channels, channels), depthwise(channels, kernel_size))


def coupled_blocks(channels: int, kernel_size: int, neuron: TurnedOn, count: int, last: nn.Sequential,
                   reversible: bool) -> ReversibleSequence:
    """`count` additive couplings (S-RevSNN): y1 = x1 + F(x2), y2 = x2 + G(y1), F and G as in `Block` on C/2 channels.

    last: second pair of the last G, shared by all columns.  reversible: False keeps everything.
    """
    half = channels // 2

    def branch(last: nn.Sequential | None) -> nn.Sequential:
        first = nn.Sequential(depthwise(half, kernel_size), pointwise(half, 4 * half))
        return nn.Sequential(OrderedDict(spike1=TurnedOff(neuron), first=first, spike2=TurnedOff(neuron),
                                         last=last_pair(half, kernel_size) if last is None else last))

    return ReversibleSequence([ReversibleBlock(branch(None), branch(last if i == count - 1 else None), split_dim=1)
                               for i in range(count)], split_dim=1, reversible=reversible)


class Stage(nn.Module):
    """A stage of one column: (below, above) -> update of the stage's turned-on neuron, [N, C, H, W].

    below: spikes of the stage before it [N, c, H or 2H, ..]; for the first stage the input, of which C / k channels are
        spread over all C.  above: spikes of the next stage in the column before, or None (first column, last stage).
    stride: 2 or 1, towards the stage before.  blocks: what comes after below and above have met.
    Batch norm is only where stages meet, as published; there is none in the blocks.
    """

    def __init__(self, channels: int, below: int | None, above: int | None, stride: int, blocks: nn.Module):
        super().__init__()
        self.channels = channels
        self.down = self.up = None
        if below is not None:
            size = 3 if stride == 2 else 1
            self.down = nn.Sequential(nn.Conv2d(below, channels, size, stride, size // 2, bias=False),
                                      nn.BatchNorm2d(channels))
        if above is not None:
            self.up = nn.Sequential(nn.Conv2d(above, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.blocks = blocks

    def forward(self, below: Tensor, above: Tensor | None) -> Tensor:
        if self.down is not None:
            x = self.down(below)
        else:
            x = below.repeat(1, self.channels // below.shape[1], 1, 1)
        if above is not None:
            x = x + F.interpolate(self.up(above), size=x.shape[-2:], mode="nearest")
        return self.blocks(x)


class EventStage(nn.Module):
    """The first stage where every time step has an input of its own, and so a stem of its own."""

    def __init__(self, stem: nn.Module, stage: Stage):
        super().__init__()
        self.stem, self.stage = stem, stage

    def forward(self, below: Tensor, above: Tensor | None) -> Tensor:
        return self.stage(self.stem(below), above)


def stem(inputs: int, channels: int, layers: tuple[tuple[int, int], ...]) -> nn.Sequential:
    """The encoding layer: scaled convolutions of (kernel size, stride), without an activation in between."""
    convs = []
    for size, stride in layers:
        convs.append(ScaledConv2d(inputs, channels, size, stride, size // 2))
        nn.init.zeros_(convs[-1].bias)
        inputs = channels
    return nn.Sequential(*convs)
