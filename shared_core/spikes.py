"""Spikes as bits: bit i % 8 of byte i / 8 of a time step is neuron i, in the order in which the step lies in memory.

The kernels write the same bits while they fire (Spec.bits); `pack` and `unpack` are their plain Torch counterparts.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .layout import Layout, layout_of

__all__ = ["pack", "unpack"]


def pack(spikes: Tensor) -> Tensor:
    """spikes [T, *shape], any dtype, non-zero is a spike -> uint8 [T, ceil(N / 8)], unused bits 0."""
    order = layout_of(spikes).order
    flat = (spikes != 0).permute(0, *(d + 1 for d in order)).reshape(spikes.shape[0], -1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=spikes.device)
    return (flat.view(flat.shape[0], -1, 8) * weights).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, layout: Layout | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack`: uint8 [T, ceil(N / 8)] -> [T, *shape] of 0 and 1 in `dtype`.

    layout: that of the packed tensor, or its shape without T if it was contiguous.
    """
    if not isinstance(layout, Layout):
        layout = Layout(tuple(layout), tuple(range(len(layout))))
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = (bits.unsqueeze(-1) >> shifts & 1).reshape(bits.shape[0], -1)[:, : layout.neurons]
    spikes = layout.empty(bits.shape[0], dtype=dtype, device=bits.device)
    spikes.permute(0, *(d + 1 for d in layout.order)).copy_(
        flat.view(bits.shape[0], *(layout.shape[d] for d in layout.order)))
    return spikes
