"""The grid on which additions are exact, so that y = x + F can be undone to the last bit.

Multiples of `grid` below 2^24 * grid are float32 numbers (2^53 * grid: float64), and so are their sums and differences
as long as they stay below it. So (x + F) - F is x, whatever F is.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import MemextError

__all__ = ["GRID", "Rounded", "check_grid", "largest", "limit", "rounded", "stream_dtype"]

GRID = 2.0 ** -14  # float32: range 1024
_SIGNIFICANT = {torch.float32: 24, torch.float64: 53}


def check_grid(grid: float | None, where: str) -> float | None:
    if grid is None:
        return None
    if isinstance(grid, bool) or not isinstance(grid, int | float) or not grid > 0 or math.frexp(grid)[0] != 0.5:
        raise MemextError(f"{where}: grid is {grid!r}; a power of two (2**-14: values below 1024 are exact in "
                          "float32), or None for no rounding, is needed")
    return float(grid)


def stream_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def limit(grid: float, dtype: torch.dtype) -> float:
    """Values below it are exact on the grid."""
    return grid * 2.0 ** _SIGNIFICANT[dtype]


def rounded(x: Tensor, grid: float | None, dtype: torch.dtype) -> Tensor:
    """x in the stream's dtype, to the nearest multiple of grid, ties to even. New memory, contiguous, unless x is as
    wanted and grid is None."""
    x = x.to(dtype).contiguous()
    return x if grid is None else x.mul(1.0 / grid).round_().mul_(grid)


class Rounded(torch.autograd.Function):
    """`rounded`, with the gradient of the identity (straight-through)."""

    @staticmethod
    def forward(ctx, x, grid, dtype):
        ctx.dtype = x.dtype
        out = rounded(x, grid, dtype)
        return out.view_as(out) if out is x else out

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype), None, None


def largest(x: Tensor) -> Tensor:
    """max |x| as a tensor of no dimension, on x's device; NaN if there is one."""
    if x.numel() == 0:
        return x.new_zeros(())
    low, high = x.detach().aminmax()
    return torch.maximum(-low, high)
