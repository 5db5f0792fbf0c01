"""backends/tensor.py in plain Torch operators: for devices without kernels, and what the kernels are tested against."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PER_BYTE = {"bits": 8, "nibble": 2, "int8": 1}  # values, by kind of coding.py
PREFIX = 4096  # values looked at first: enough to tell real numbers from spikes
GRIDS = (1.0, 0.25, 0.0625)  # spikes; their averages over 2 x 2 and 4 x 4
_BIT = (1, 2, 4, 8, 16, 32, 64, 128)


# ---- packing ----

@dataclass(frozen=True)
class Levels:
    """The values of a tensor. only: the one that is not 0 (0: there is none, None: there are several).  grid: the
    coarsest of GRIDS of which all are multiples, or None."""

    low: float
    high: float
    only: float | None
    grid: float | None

    def join(self, other: Levels) -> Levels:
        only = other.only if self.only == 0 else self.only if other.only in (0, self.only) else None
        grid = None if None in (self.grid, other.grid) else min(self.grid, other.grid)
        return Levels(min(self.low, other.low), max(self.high, other.high), only, grid)

    @property
    def code(self) -> tuple[str, float] | None:
        """(kind, scale) of coding.py that holds these values, or None."""
        if self.only is not None and self.low >= 0:
            return "bits", self.only or 1.0
        if self.grid is None:
            return None
        if self.low >= 0 and self.high <= 15 * self.grid:
            return "nibble", self.grid
        if self.low >= -128 * self.grid and self.high <= 127 * self.grid:
            return "int8", self.grid
        return None


def levels(flat: Tensor) -> Levels | None:
    """None where a value is NaN, infinite or -0.0, or an overflow would come of it."""
    if flat.numel() == 0:
        return Levels(0.0, 0.0, 0.0, 1.0)
    low, high = (v.item() for v in flat.aminmax())
    if not (-1e30 < low <= high < 1e30) or ((flat == 0) & flat.signbit()).any():
        return None
    only = high if low >= 0 and ((flat == 0) | (flat == high)).all() else None
    grid = next((g for g in GRIDS if (flat / g == (flat / g).round()).all()), None)
    return Levels(low, high, only, grid)


def pack_checked(flat: Tensor) -> tuple[Tensor, str, float] | None:
    for part in (flat[:PREFIX], flat):
        found = levels(part)
        code = None if found is None else found.code
        if code is None:
            return None
    return pack(flat, *code), *code


def pack(flat: Tensor, kind: str, scale: float) -> Tensor:
    if kind == "int8":
        return (flat / scale).to(torch.int8)
    if kind == "nibble":
        pairs = torch.nn.functional.pad((flat / scale).to(torch.uint8), (0, flat.numel() % 2)).view(-1, 2)
        return pairs[:, 0] | pairs[:, 1] << 4
    ones = torch.nn.functional.pad(flat != 0, (0, -flat.numel() % 8)).view(-1, 8)
    return (ones * torch.tensor(_BIT, dtype=torch.uint8, device=flat.device)).sum(-1, dtype=torch.uint8)


def unpack(data: Tensor, kind: str, scale: float, out: Tensor) -> None:
    """Into out [n], dense."""
    if kind == "bits":
        weights = torch.tensor(_BIT, dtype=torch.uint8, device=data.device)
        data = (data.unsqueeze(-1) & weights).ne(0).view(-1)[:out.numel()]
    elif kind == "nibble":
        data = torch.stack((data & 15, data >> 4), -1).view(-1)[:out.numel()]
    out.copy_(data)
    if scale != 1:
        out.mul_(scale)


# ---- batch norm ----

def per_channel(v: Tensor, y: Tensor) -> Tensor:
    """[C] so that it meets y [N, C, *]."""
    return v.view(-1, *(1,) * (y.dim() - 2))


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c, rounded once for float32: the product is exact in float64, and the sum is rounded to odd there, so
    that rounding it again to float32 does no harm. For float64 rounded twice; half types are computed in float32."""
    if torch.float64 in (a.dtype, b.dtype):
        return a * b + c
    product, c = a.double() * b.double(), c.double()
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    odd = (total.view(torch.int64) & 1) != 0
    towards = torch.where(lost > 0, torch.inf, -torch.inf).to(total.dtype)
    moved = torch.where((lost != 0) & ~odd & total.isfinite(), torch.nextafter(total, towards), total)
    return moved.float()


def normalise(y: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    return out.copy_(fma(y, per_channel(scale, y), per_channel(shift, y)))


def norm_sums(grad: Tensor, y: Tensor, mean: Tensor) -> Tensor:
    """[2, C] float64: sum of g, sum of g * (y - mean)."""
    g, over = grad.double(), [d for d in range(y.dim()) if d != 1]
    return torch.stack((g.sum(over), (g * (y.double() - per_channel(mean, y))).sum(over)))


def norm_apply(grad: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sums: Tensor,
               training: bool, into: Tensor | None) -> Tensor:
    """mean, invstd, weight [C] and sums [2, C] in float64."""
    scale, g = invstd if weight is None else invstd * weight, grad.double()
    if training:
        count = y.numel() // max(y.shape[1], 1)
        slope = sums[1] * invstd * invstd / count
        g = g - per_channel(sums[0] / count, y) - (y.double() - per_channel(mean, y)) * per_channel(slope, y)
    return (torch.empty_like(y) if into is None else into).copy_(g * per_channel(scale, y))


# ---- pooling ----

def max_pool2d_backward(grad: Tensor, x: Tensor, *options) -> Tensor:
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *options)
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *options, indices)
