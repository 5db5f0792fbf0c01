"""RevSFormer: Spikformer of reversible blocks (Zhang and Zhang 2024)."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared_core.chain.attention import spike_attention
from shared_core.chain.modules import gains
from shared_core.errors import MemextError

from .._host import layer, neuron
from ..layer import ReversibleBlock, ReversibleSequence
from ._rev import Invertible, Neurons, conv_norm, finished, over_time

__all__ = ["RevSpikformer", "rev_spikformer"]

SCALE = 0.125  # of the products of spikes; the authors' value, whatever the width of a head
THRESHOLD = 0.5  # of the neuron behind them


class Attention(nn.Module):
    """F: neuron; q, k, v as one convolution with norm and neuron; (q k^T) v * 0.125; neuron; convolution, norm.

    x: [T, N, width, H, W], to the same shape. Without a softmax, (q k^T) v = q (k^T v): sums of spikes, exact in any
    order.
    """

    def __init__(self, width: int, heads: int, neurons: Neurons):
        super().__init__()
        self.heads = heads
        self.neuron = neurons()
        self.qkv = nn.Sequential(*conv_norm(width, 3 * width, 1, dims=1), neurons())
        self.attended = neurons(v_threshold=THRESHOLD)
        self.proj = nn.Sequential(*conv_norm(width, width, 1, bias=True, dims=1))

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, width = x.shape[:3]
        qkv = self.qkv(self.neuron(x).flatten(3))
        qkv = qkv.reshape(steps, batch, 3, self.heads, width // self.heads, -1)
        if gains(qkv):
            out = spike_attention(qkv, SCALE)  # keeps q, k, v as bits
        else:
            q, k, v = qkv.unbind(2)
            out = (v @ k.transpose(-2, -1)) @ q * SCALE
        return self.proj(self.attended(out.reshape(steps, batch, width, -1))).reshape(x.shape)


class RevSpikformer(Invertible):
    """stem, tokens: five convolutions with norms, neurons between them, and two max poolings; blocks: a reversible
    sequence, F attention and G an MLP, on a stream that holds the tokens twice; mean over the tokens; linear layer."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, num_classes: int, in_channels: int, steps: int,
                 neurons: Neurons, options: dict):
        super().__init__()
        self.steps = steps
        self.stem = nn.Sequential(*conv_norm(in_channels, width // 8))
        self.tokens = nn.Sequential(
            neurons(), *conv_norm(width // 8, width // 4), neurons(), *conv_norm(width // 4, width // 2),
            neurons(), layer.MaxPool2d(3, 2, 1), *conv_norm(width // 2, width),
            neurons(), layer.MaxPool2d(3, 2, 1), *conv_norm(width, width))
        self.blocks = ReversibleSequence(
            [ReversibleBlock(Attention(width, heads, neurons),
                             nn.Sequential(neurons(), *conv_norm(width, hidden, 1, bias=True),
                                           neurons(), *conv_norm(hidden, width, 1, bias=True)))
             for _ in range(depth)], **options)
        self.head = layer.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(over_time(self.stem, x, self.steps))
        return self.head(self.blocks(torch.cat((x, x), 2)).flatten(3).mean(3))


def rev_spikformer(num_classes: int = 10, in_channels: int = 3, T: int = 4, *, width: int = 384, depth: int = 2,
                   heads: int = 12, mlp_ratio: float = 4.0, spiking_neuron: Callable[..., nn.Module] | None = None,
                   grid: float | None = 2**-14, carry_state: bool | None = None, reversible: bool = True,
                   check: bool = True, **kwargs) -> RevSpikformer:
    """RevSFormer-2-384 (depth=4: RevSFormer-4-384): [T, N, in_channels, H, W], or images [N, in_channels, H, W] shown T
    times -> [T, N, num_classes]; class scores are the mean over T. A token is 4x4 pixels; H and W are multiples of 4.
    5,766,586 parameters at depth 2, 9,323,962 at 4, with 10 classes (the authors').

    spiking_neuron, kwargs: class and options of every neuron; default: LIFNode, tau 2, detached reset, as the authors'.
    grid, carry_state, reversible, check: of ReversibleSequence.
    Differs from the authors' code: sums are exact (see shared_core.reversible.coupling), norms count a step once, and
    of a still image the first convolution and norm run once, not T times (the same values).
    """
    counts = {"num_classes": num_classes, "in_channels": in_channels, "T": T, "width": width, "depth": depth,
              "heads": heads}
    for what, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MemextError(f"rev_spikformer: {what} is {value!r}; a positive whole number is needed")
    if width % heads or width % 8:
        raise MemextError(f"rev_spikformer: width is {width} with {heads} heads; a multiple of the heads and of 8 is "
                          "needed")
    neurons = Neurons(spiking_neuron, neuron.LIFNode, {"tau": 2.0, "detach_reset": True}, kwargs)
    options = {"grid": grid, "carry_state": carry_state, "reversible": reversible, "check": check}
    return finished(RevSpikformer(width, depth, heads, round(width * mlp_ratio), num_classes, in_channels, T, neurons,
                                  options))
