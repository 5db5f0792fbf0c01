"""Neurons do not interact, so a kernel may see any dense [T, *shape] tensor as [T, N]: this file finds that view.

channels_last, permuted and time-strided tensors run without a copy as long as one time step is dense in some order of
its dimensions; anything else is copied once per call (the tensor saved for backward stays the caller's own).
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["Layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """Order of the dimensions of one time step in memory: `order[0]` varies slowest."""

    shape: tuple[int, ...]
    order: tuple[int, ...]

    @cached_property
    def neurons(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        strides, step = [0] * len(self.shape), 1
        for d in reversed(self.order):
            strides[d] = step
            step *= self.shape[d]
        return tuple(strides)

    def shared(self, groups: int, channel: int) -> tuple[Layout, int]:
        """(layout of the membrane that `groups` channel groups share, how many values of one group lie together)."""
        if groups == 1:
            return self, 0
        shape = list(self.shape)
        shape[channel] //= groups
        inner = self.order[self.order.index(channel):]
        return Layout(tuple(shape), self.order), math.prod(shape[d] for d in inner)

    def empty(self, *lead: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised [*lead, *shape], lead dimensions outermost."""
        strides, step = [], self.neurons
        for size in reversed(lead):
            strides.insert(0, step)
            step *= size
        return torch.empty_strided((*lead, *self.shape), (*strides, *self.strides), dtype=dtype, device=device)

    def is_dense(self, t: Tensor, lead: int) -> bool:
        strides = t.stride()[lead:]
        return strides == self.strides or all(n <= 1 or a == b for n, a, b in zip(self.shape, strides, self.strides))

    def state(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """A state or its gradient, [*shape] in `dtype`, dense in this order; copied only if it must be."""
        if t.dtype == dtype and self.is_dense(t, 0):
            return t
        return self.empty(dtype=dtype, device=t.device).copy_(t)

    def sequence(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, int]:
        """A sequence [T, *shape] whose steps are dense in this order, and its stride in time (0 when expanded)."""
        if self.is_dense(t, 1) and dtype in (None, t.dtype):
            return t, t.stride(0)
        dense = self.empty(t.shape[0], dtype=dtype or t.dtype, device=t.device).copy_(t)
        return dense, self.neurons

    def sequences(self, t: Tensor) -> Tensor:
        """[*lead, *shape] as `empty` lays it out; copied only if it must be."""
        lead = t.dim() - len(self.shape)
        strides, step = [], self.neurons
        for size in reversed(t.shape[:lead]):
            strides.insert(0, step)
            step *= size
        if self.is_dense(t, lead) and all(n <= 1 or a == b for n, a, b in zip(t.shape, t.stride(), strides)):
            return t
        return self.empty(*t.shape[:lead], dtype=t.dtype, device=t.device).copy_(t)

    def parameter(self, p: Tensor, dtype: torch.dtype) -> tuple[Tensor, int, int]:
        """(values, inner, size) such that neuron i of the dense order reads values[(i // inner) % size]."""
        if p.numel() == 1:
            return p.reshape(1).to(dtype), 1, 1
        full = p.reshape((1,) * (len(self.shape) - p.dim()) + tuple(p.shape))
        sizes = [full.shape[d] for d in self.order]
        used = [i for i, n in enumerate(sizes) if n != 1]
        between = range(used[0], used[-1] + 1)
        if all(sizes[i] == self.shape[self.order[i]] for i in between):
            inner = math.prod(self.shape[d] for d in self.order[used[-1] + 1:])
            return full.permute(self.order).reshape(-1).to(dtype).contiguous(), inner, full.numel()
        values = full.expand(self.shape).permute(self.order).reshape(-1).to(dtype).contiguous()
        return values, 1, values.numel()


def layout_of(x: Tensor) -> Layout:
    """The order in which one step of x [T, *shape] lies in memory; the standard order if the step is not dense."""
    find = _cached if type(x) in (Tensor, Parameter) else _find  # fake tensors may have symbolic sizes
    return find(tuple(x.shape[1:]), x.stride()[1:])


def _find(shape: tuple[int, ...], strides: tuple[int, ...]) -> Layout:
    standard = tuple(range(len(shape)))
    order = tuple(sorted(standard, key=lambda d: (-strides[d], d))) if all(n > 0 for n in shape) else standard
    found = Layout(shape, order)
    dense = all(n <= 1 or a == b for n, a, b in zip(shape, strides, found.strides))
    return found if dense else Layout(shape, standard)


_cached = lru_cache(maxsize=1024)(_find)  # found anew, it would be a tenth of a small call
