"""Pooling that keeps spikes as bits (max) or nothing but a shape (average), where Torch keeps floats and indices.

The gradient of max pooling goes to the first maximum of each window, which the bits of the spikes tell as well as the
spikes do. In a chain (norm -> pool -> neuron) the pool keeps the norm's node, and is run again from its input. Real
values are kept as they are, and their first maxima are found again where our kernels do it (Torch keeps 8 bytes a
window, and takes ten times as long to find them).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import tensor as kernels
from ._links import Chained, keep, link_to, made, refuse_double_backward, value_of
from .stamps import code_of

__all__ = ["PoolOptions", "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "pool_of"]


@dataclass(frozen=True)
class PoolOptions:
    """Arguments of torch.nn.functional.max_pool2d, each a pair."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    @property
    def arguments(self) -> tuple:
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode


def pool_of(module) -> PoolOptions:
    """The arguments of a torch.nn.MaxPool2d."""
    pair = lambda v: tuple(v) if isinstance(v, tuple | list) else (v, v)  # noqa: E731
    return PoolOptions(pair(module.kernel_size), pair(module.stride), pair(module.padding), pair(module.dilation),
                       module.ceil_mode)


def max_pool2d(x: Tensor, options: PoolOptions, chains: bool) -> Tensor:
    """x [N, C, H, W]. chains: x may be rebuilt by the node that made it. Torch's own where x can be kept in no
    smaller form."""
    link = link_to(x) if chains else None
    if link is None and code_of(x) is None and not kernels.finds_maxima(x, *options.arguments):
        return F.max_pool2d(x, *options.arguments)
    return _MaxPool.apply(x, link, options)


class _MaxPool(Chained):
    @staticmethod
    def forward(ctx, x, link, options):
        tensors: list[Tensor] = []
        ctx.kept, ctx.options = keep(x, tensors, link=link), options
        y = _pooled(x, options)
        ctx.save_for_backward(*tensors)
        ctx.made = made(y)
        ctx.levels = None if ctx.kept.code is None else ctx.kept.code.levels
        return y

    @staticmethod
    def rebuild(ctx):
        return _pooled(value_of(ctx.kept, ctx.saved_tensors), ctx.options)

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.max_pool2d")
        kept, arguments = ctx.kept, ctx.options.arguments
        if kept.code is not None:
            x_grad = kernels.max_pool2d_backward(grad, ctx.saved_tensors[kept.slot], kept.code, *arguments)
        else:
            x_grad = kernels.max_pool2d_from(grad, value_of(kept, ctx.saved_tensors), *arguments)
        return x_grad, None, None


def _pooled(x: Tensor, o: PoolOptions) -> Tensor:
    return kernels.max_pool2d(x, *o.arguments)


def avg_pool2d(x: Tensor, kernel, stride, padding, ceil_mode: bool, count_include_pad: bool, divisor) -> Tensor:
    """As torch.nn.functional.avg_pool2d; its gradient needs x's shape alone, and keeps no more."""
    arguments = (kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    return _ShapeOnly.apply(x, torch.ops.aten.avg_pool2d.default, torch.ops.aten.avg_pool2d_backward.default, arguments)


def adaptive_avg_pool2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    """As torch.nn.functional.adaptive_avg_pool2d, keeping x's shape alone."""
    return _ShapeOnly.apply(x, torch.ops.aten._adaptive_avg_pool2d.default,
                            torch.ops.aten._adaptive_avg_pool2d_backward.default, (size,))


class _ShapeOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, operator, backward_operator, arguments):
        ctx.backward_operator, ctx.like = backward_operator, (tuple(x.shape), x.dtype)
        ctx.arguments = arguments if len(arguments) > 1 else ()
        return operator(x, *arguments)

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.avg_pool2d")
        shape, dtype = ctx.like
        # Some memory format must be named: an expanded scalar has the shape and costs 4 bytes.
        like = torch.zeros((), dtype=dtype, device=grad.device).expand(shape)
        return ctx.backward_operator(grad, like, *ctx.arguments), None, None, None
