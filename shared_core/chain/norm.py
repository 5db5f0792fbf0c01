"""Batch, group and layer norm that keep only their input, or nothing, and never their output.

    z = (y - mean) * invstd * weight + bias

The forward is Torch's own operator, so values, running statistics and counters are Torch's own. The output is not kept:
the neuron behind it reads y and applies the norm while reading (batch norm is one `fma(y, scale, shift)` per channel).
Kept for backward: mean and 1 / std as the forward computed them; y itself, or, where running the layer before it again
is worth it (policy.py), only the node that made y.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ..backends import tensor as kernels
from ._chunks import Chunks
from ._links import Chained, Made, keep, link_to, made, refuse_double_backward, value_of
from ._ownership import sole_owner
from .linear import Conv
from .policy import Policy, worth_running_again

__all__ = ["BatchNorm", "Norm", "batch_norm", "group_norm", "layer_norm"]


def batch_norm(y: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
               running_var: Tensor | None, training: bool, momentum: float, eps: float, policy: Policy) -> Tensor:
    """As torch.nn.functional.batch_norm on y [N, C, *]."""
    return BatchNorm.apply(y, weight, bias, running_mean, running_var, training, momentum, eps, policy)


def group_norm(y: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, policy: Policy
               ) -> Tensor:
    """As torch.nn.functional.group_norm on y [N, C, *]."""
    return _GroupNorm.apply(y, weight, bias, groups, eps, policy)


def layer_norm(y: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float,
               policy: Policy) -> Tensor:
    """As torch.nn.functional.layer_norm over the last dimensions `shape`."""
    return _LayerNorm.apply(y, weight, bias, shape, eps, policy)


class Norm(Chained):
    """What norms share: how y is kept, and that a y that was rebuilt serves the neuron and then the norm itself."""

    @staticmethod
    def keep_input(ctx, y: Tensor, policy: Policy, small: list[Tensor | None]) -> None:
        """small: what else to save; comes back from `saved`."""
        link = link_to(y)
        tensors = list(small)
        ctx.count = len(small)
        ctx.kept = keep(y, tensors, link=link if link is not None and worth_running_again(link, policy) else None,
                        spikes=False)
        ctx.save_for_backward(*tensors)
        ctx.policy = policy
        ctx.levels = ctx.rebuilt = ctx.sums = ctx.chunks = None

    @staticmethod
    def input_of(ctx, saved) -> Tensor:
        """y. Rebuilt at most once a backward pass: the first to ask is the neuron, the last the norm."""
        if ctx.kept.link is None:
            return value_of(ctx.kept, saved)
        if ctx.rebuilt is None:
            ctx.rebuilt = value_of(ctx.kept, saved)
        return ctx.rebuilt

    @staticmethod
    def take_input(ctx, saved) -> Tensor:
        """y, for the last who needs it."""
        y, ctx.rebuilt = Norm.input_of(ctx, saved), None
        return y


class BatchNorm(Norm):
    @staticmethod
    def forward(ctx, y, weight, bias, running_mean, running_var, training, momentum, eps, policy):
        z, mean, invstd, *_ = torch.ops.aten._batch_norm_impl_index(
            y, weight, bias, running_mean, running_var, training, momentum, eps, torch.backends.cudnn.enabled)
        if not training:  # the operator returns nothing of use then; copies, as the running statistics may move on
            wide = torch.float64 if y.dtype == torch.float64 else torch.float32
            mean = running_mean.to(wide, copy=True)
            invstd = (running_var.to(wide) + eps).rsqrt()  # in this precision, as Torch does
        ctx.training, ctx.eps = training, eps
        Norm.keep_input(ctx, y, policy, [weight, bias, mean, invstd])
        ctx.made = made(z)
        return z

    @staticmethod
    def affine(ctx, saved) -> tuple[Tensor, Tensor]:
        """(scale, shift) [C] such that z = fma(y, scale, shift)."""
        weight, bias, mean, invstd = saved[:4]
        return kernels.folded(mean, invstd, weight, bias)

    @staticmethod
    def note_sums(ctx, grad: Tensor, sums: Tensor) -> None:
        """The neuron's kernel has taken the sums of the gradient it is about to return."""
        ctx.sums = torch._C._current_graph_task_id(), Made.of(grad), sums

    @staticmethod
    def sums_of(ctx, grad: Tensor) -> Tensor | None:
        """The noted sums if they are grad's: of this very backward pass (another's gradient may lie at the same
        address), and nothing, such as a second consumer or a hook, has added to it."""
        if ctx.sums is None:
            return None
        task, noted, sums = ctx.sums
        return sums if task == torch._C._current_graph_task_id() and noted.is_seen_through(grad) else None

    @staticmethod
    def rebuild(ctx):
        saved = ctx.saved_tensors
        return kernels.normalise(BatchNorm.input_of(ctx, saved), *BatchNorm.affine(ctx, saved))

    @staticmethod
    def backward(ctx, *grads):
        refuse_double_backward("chain.batch_norm")
        into = grads[0] if ctx.policy.count(sole_owner(grads)) else None
        sums = BatchNorm.sums_of(ctx, grads[0])
        chunks, ctx.sums, ctx.chunks = ctx.chunks, None, None
        if chunks is not None:
            gradients = _backward_in_chunks(ctx, chunks, grads[0], into, sums)
        else:
            saved = ctx.saved_tensors
            weight, _, mean, invstd = saved[:4]
            gradients = kernels.norm_backward(grads[0], Norm.take_input(ctx, saved), mean, invstd, weight,
                                              training=ctx.training, into=into, sums=sums)
        return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad)), *(None,) * 6


def _backward_in_chunks(ctx, chunks: Chunks, grad: Tensor, into: Tensor | None, sums: Tensor | None):
    """As the whole, with y rebuilt for some samples at a time; the conv's backward then goes the same way."""
    weight, _, mean, invstd = ctx.saved_tensors[:4]
    conv = ctx.kept.link
    if sums is None:
        sums = sum(kernels.norm_sums(chunks.part(grad, chunk), Conv.rebuild_part(conv, chunks, chunk))
                   for chunk in chunks)
    grad_y = torch.empty_like(grad) if into is None else into
    count = grad.numel() // grad.shape[1]
    for chunk in chunks:
        part = chunks.part(grad, chunk)
        part, grad_w, grad_b = kernels.norm_backward(part, Conv.rebuild_part(conv, chunks, chunk), mean, invstd, weight,
                                                     training=ctx.training, into=part, sums=sums, count=count)
        chunks.put(grad_y, chunk, part)
    conv.chunks = chunks
    return grad_y, grad_w, grad_b


class _GroupNorm(Norm):
    @staticmethod
    def forward(ctx, y, weight, bias, groups, eps, policy):
        ctx.shape = y.shape[0], y.shape[1], y[0, 0].numel() if y.numel() else 0, groups
        z, mean, invstd = torch.ops.aten.native_group_norm(y, weight, bias, *ctx.shape, eps)
        ctx.eps = eps
        Norm.keep_input(ctx, y, policy, [weight, bias, mean, invstd])
        ctx.made = made(z)
        return z

    @staticmethod
    def rebuild(ctx):
        saved = ctx.saved_tensors
        return torch.ops.aten.native_group_norm(Norm.input_of(ctx, saved), *saved[:2], *ctx.shape, ctx.eps)[0]

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.group_norm")
        saved = ctx.saved_tensors
        weight, _, mean, invstd = saved[:4]
        grads = torch.ops.aten.native_group_norm_backward(
            grad, Norm.take_input(ctx, saved), mean, invstd, weight, *ctx.shape, list(ctx.needs_input_grad[:3]))
        return *grads, None, None, None


class _LayerNorm(Norm):
    @staticmethod
    def forward(ctx, y, weight, bias, shape, eps, policy):
        z, mean, invstd = torch.ops.aten.native_layer_norm(y, shape, weight, bias, eps)
        ctx.normalized, ctx.eps = shape, eps
        Norm.keep_input(ctx, y, policy, [weight, bias, mean, invstd])
        ctx.made = made(z)
        return z

    @staticmethod
    def rebuild(ctx):
        saved = ctx.saved_tensors
        return torch.ops.aten.native_layer_norm(Norm.input_of(ctx, saved), ctx.normalized, *saved[:2], ctx.eps)[0]

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.layer_norm")
        saved = ctx.saved_tensors
        weight, bias, mean, invstd = saved[:4]
        grads = torch.ops.aten.native_layer_norm_backward(
            grad, Norm.take_input(ctx, saved), ctx.normalized, mean, invstd, weight, bias,
            list(ctx.needs_input_grad[:3]))
        return *grads, None, None, None
