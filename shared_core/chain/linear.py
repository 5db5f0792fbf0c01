"""Convolution and linear layers that keep spikes as bits, and can be run again.

    y = x * w + b                                    forward: Torch's own operator, so the values are Torch's own
    grad_x, grad_w, grad_b = convolution_backward    backward: Torch's own operator, on x from its bits

Kept for backward: x as `_links.keep` decides (bits or small integers, else x itself; a frozen w needs no x), and w.
Never the output: the norm or neuron behind it asks for it, and gets it by running the operator again.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ._chunks import Chunks
from ._links import Chained, Kept, keep, made, refuse_double_backward, value_of
from .policy import Policy

__all__ = ["Conv", "ConvOptions", "conv", "linear"]


@dataclass(frozen=True)
class ConvOptions:
    """Arguments of Torch's convolution operator, one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, options: ConvOptions, policy: Policy) -> Tensor:
    """Convolution or transposed convolution of x [N, C, *] or [C, *]; weight and bias as in torch.nn."""
    y = Conv.apply(x, weight, bias, options)
    policy.note(y)
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [*, in] -> [*, out]."""
    return _Linear.apply(x, weight, bias)


class Conv(Chained):
    @staticmethod
    def forward(ctx, x, weight, bias, options):
        ctx.options, ctx.bias_sizes = options, None if bias is None else list(bias.shape)
        tensors: list[Tensor] = [weight, *(() if bias is None else (bias,))]
        # The bias is saved only to run the operator again; it is a parameter, so it costs nothing.
        ctx.kept, ctx.levels = keep(x, tensors, needed=ctx.needs_input_grad[1]), None
        ctx.save_for_backward(*tensors)
        y = _convolve(x, weight, bias, options)
        ctx.made = made(y) if ctx.kept.there else None
        ctx.products, ctx.chunks = _products(weight, options), None
        return y

    @staticmethod
    def rebuild(ctx):
        saved = ctx.saved_tensors
        return Conv.run_again(ctx, value_of(ctx.kept, saved), saved)

    @staticmethod
    def rebuild_part(ctx, chunks: Chunks, chunk: slice) -> Tensor:
        """The output for the samples of one chunk."""
        saved = ctx.saved_tensors
        return Conv.run_again(ctx, chunks.input_part(saved, ctx.kept, chunk), saved)

    @staticmethod
    def run_again(ctx, x: Tensor, saved) -> Tensor:
        weight = saved[0]
        bias = saved[1] if ctx.bias_sizes is not None else None
        with torch.no_grad(), _no_autocast(weight):
            return _convolve(x, weight, bias, ctx.options)

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.conv")
        if ctx.chunks is not None:
            return *_backward_in_chunks(ctx, grad), None
        saved = ctx.saved_tensors
        x = value_of(ctx.kept, saved) if ctx.needs_input_grad[1] else _shape_of(ctx.kept, grad)
        return *_gradients(ctx, grad, x, saved[0]), None


def _gradients(ctx, grad: Tensor, x: Tensor, weight: Tensor
               ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, weight and bias, for the gradient of the output at x."""
    o, needs = ctx.options, list(ctx.needs_input_grad[:3])
    batched = x.dim() == len(o.stride) + 2
    if not batched:
        x, grad = x.unsqueeze(0), grad.unsqueeze(0)
    grad_x, grad_w, grad_b = torch.ops.aten.convolution_backward(
        grad, x, weight, ctx.bias_sizes, o.stride, o.padding, o.dilation, o.transposed, o.output_padding,
        o.groups, needs)
    return grad_x if batched or grad_x is None else grad_x.squeeze(0), grad_w, grad_b


def _backward_in_chunks(ctx, grad: Tensor):
    chunks, ctx.chunks = ctx.chunks, None
    needs, saved = ctx.needs_input_grad, ctx.saved_tensors
    grad_x = torch.empty(ctx.kept.shape, dtype=grad.dtype, device=grad.device) if needs[0] else None
    sums: list[Tensor | None] = [None, None]
    for chunk in chunks:
        part = chunks.part(grad, chunk)
        x = (chunks.input_part(saved, ctx.kept, chunk) if needs[1]
             else part.new_empty((part.shape[0], *ctx.kept.shape[1:])))
        grad_part, *of_parameters = _gradients(ctx, part, x, saved[0])
        if grad_x is not None:
            chunks.put(grad_x, chunk, grad_part)
        sums = [g if total is None else total.add_(g) for total, g in zip(sums, of_parameters)]
    return grad_x, *sums


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, o: ConvOptions) -> Tensor:
    batched = x.dim() == len(o.stride) + 2
    y = torch.convolution(x if batched else x.unsqueeze(0), weight, bias, o.stride, o.padding, o.dilation,
                          o.transposed, o.output_padding, o.groups)
    return y if batched else y.squeeze(0)


def _products(weight: Tensor, o: ConvOptions) -> int:
    """Multiplications in one output value: in / groups * kernel size; a transposed one spreads them by its stride."""
    if o.transposed:
        return weight[:, 0].numel() // o.groups // math.prod(o.stride)
    return weight[0].numel()


def _shape_of(kept: Kept, like: Tensor) -> Tensor:
    """What the operator needs of x when only the gradient of x is wanted: its shape."""
    return torch.empty_strided(kept.shape, kept.stride, dtype=like.dtype, device=like.device)


class _Linear(Chained):
    @staticmethod
    def forward(ctx, x, weight, bias):
        tensors: list[Tensor] = [weight, *(() if bias is None else (bias,))]
        ctx.with_bias = bias is not None
        ctx.kept, ctx.levels = keep(x, tensors, needed=ctx.needs_input_grad[1]), None
        ctx.save_for_backward(*tensors)
        y = F.linear(x, weight, bias)
        ctx.made = made(y) if ctx.kept.there else None
        ctx.products = weight.shape[-1]
        return y

    @staticmethod
    def rebuild(ctx):
        saved = ctx.saved_tensors
        with torch.no_grad(), _no_autocast(saved[0]):
            return F.linear(value_of(ctx.kept, saved), saved[0], saved[1] if ctx.with_bias else None)

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.linear")
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_w = grad_b = None
        if needs[1]:
            grad_w = rows.t() @ value_of(ctx.kept, saved).reshape(-1, ctx.kept.shape[-1])
        if needs[0]:
            grad_x = (rows @ saved[0]).view(ctx.kept.shape)
        if needs[2]:
            grad_b = rows.sum(0)
        return grad_x, grad_w, grad_b


def _no_autocast(t: Tensor):
    """What is run again runs on values that autocast already cast."""
    return torch.autocast(t.device.type, enabled=False)
