"""The reversible neuron's backend in plain Torch: _torch.py with the kernels' calling convention.

Tensors are dense: sequences [T, outer, groups, inner], potentials [outer, groups, inner]; the last two are
filled.
"""
from __future__ import annotations

import torch
from torch import Tensor

from . import _torch

__all__ = ["backward", "forward", "start"]


def start(eq, like: Tensor, v: Tensor | None) -> Tensor:
    """The potential before the first step of a sequence."""
    return torch.full_like(like[0], eq.v_reset) if v is None else v


def forward(eq, x: Tensor, v: Tensor | None, surrogate, y: Tensor, v_out: Tensor) -> Tensor:
    """Fills y and v_out; returns the greatest |z| and |V| (float32 [2])."""
    with torch.no_grad():
        done, final, largest = _torch.loop(eq, x, start(eq, x, v), surrogate)
        y.copy_(done)
        v_out.copy_(final)
    return largest


def backward(eq, y: Tensor, v: Tensor | None, surrogate, grad_y: Tensor | None, grad_v: Tensor | None, grad_x: Tensor,
             grad_v0: Tensor) -> None:
    """Fills grad_x and grad_v0 (of the potential before the first step)."""
    of_x, of_v = _torch.backward(eq, y, start(eq, y, v), surrogate, grad_y, grad_v)
    grad_x.copy_(of_x)
    grad_v0.copy_(of_v)
