"""A layer of neurons in a chain: keeps its spikes as bits and, of its input, the node that made it.

In the backward pass the input is rebuilt (batch norm is folded into the reading of it), the spikes are the stored bits,
never thresholded anew, and the gradient is written over the incoming one where that belongs to nobody else.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _tape, backends, coding, functional
from ..backends import fake, reference
from ..backends import tensor as kernels
from ..coding import is_fake
from ..dynamics import Dynamics
from ..functional import MultiStep
from ..spec import Spec
from ..surrogate import Surrogate
from ._chunks import Chunks, chunks_of
from ._links import Chained, Kept, Made, keep, link_to, made, refuse_double_backward, seen_as, value_of
from ._ownership import sole_owner
from .linear import Conv
from .norm import BatchNorm, Norm
from .policy import Policy, in_chunks
from .stamps import stamp

__all__ = ["multi_step"]


def multi_step(dynamics: Dynamics, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor] = (), *,
               surrogate: Surrogate, policy: Policy, record: bool = False, online: bool = False, groups: int = 1
               ) -> MultiStep:
    """As functional.multi_step, which it calls where there is nothing to gain: no gradient asked for, states recorded,
    a surrogate without a kernel, a single step (whose potential is all it keeps), torch.compile, a step of
    temporal.unroll (whose tape has the bits)."""
    plain = lambda: functional.multi_step(dynamics, x, state, params, surrogate=surrogate, record=record,  # noqa: E731
                                          online=online, groups=groups)
    if online:
        state = tuple(s if s is None else s.detach() for s in state)
    tensors = [t for t in (x, *state, *params) if isinstance(t, Tensor)]
    if (record or surrogate.fn is not None or surrogate.random or surrogate.alphabet != "binary"
            or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0 or _tape.current() is not None
            or not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))):
        return plain()
    functional.check(f"chain.multi_step({dynamics.name})", dynamics, x, state, params, None, groups)
    if x.shape[0] * groups == 1 and any(s is not None for s in state):
        return plain()
    backend = fake if is_fake(x) else backends.choose(dynamics, surrogate, x.device, "auto")
    if backend is reference:
        return plain()
    params = tuple(p if p.device == x.device else p.to(x.device) for p in params)
    spec = Spec(dynamics, surrogate, None, False, True, online, groups)
    link = link_to(x) if policy.chains else None
    spikes, *final, bits = _Neuron.apply(spec, backend, policy, link, x, *state, *params)
    stamp(spikes, bits)
    return MultiStep(spikes, tuple(final), (), bits)


class _Neuron(Chained):
    @staticmethod
    def forward(ctx, spec, backend, policy, link, x, *tensors):
        count = len(spec.dynamics.states)
        state, params = tensors[:count], tensors[count:]
        ctx.spec, ctx.backend, ctx.policy = spec, backend, policy
        out = backend.forward(spec, x, state, params, keep=True)
        saved = [*state, *params, out.anchors, out.bits]
        ctx.kept = keep(x, saved, link=link, spikes=False)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(out.bits)
        ctx.made, ctx.levels, ctx.spike_dtype = made(out.spikes), 1, out.spikes.dtype
        return out.spikes, *out.final, out.bits

    @staticmethod
    def rebuild(ctx):
        bits = ctx.saved_tensors[len(ctx.spec.dynamics.states) + len(ctx.spec.dynamics.params) + 1]
        like = torch.empty_strided(ctx.made.shape, ctx.made.stride, dtype=ctx.spike_dtype, device="meta")
        return coding.decode(*coding.from_step_bits(bits, like))

    @staticmethod
    def backward(ctx, *grads):
        refuse_double_backward("chain.multi_step")
        into = grads[0] if grads[0] is not None and ctx.policy.count(sole_owner(grads)) else None
        count = len(ctx.spec.dynamics.states)
        chunks = _chunks(ctx, grads[0])
        run = _whole if chunks is None else partial(_in_chunks, chunks)
        grad_x, grad_state, grad_params = run(ctx, grads[0], grads[1:1 + count], into)
        return None, None, None, None, grad_x, *grad_state, *grad_params


class _Saved:
    """What a node saved, by name."""

    def __init__(self, ctx):
        dynamics, self.all = ctx.spec.dynamics, ctx.saved_tensors
        states, params = len(dynamics.states), len(dynamics.params)
        self.state, self.params = self.all[:states], self.all[states:states + params]
        self.anchors, self.bits = self.all[states + params:states + params + 2]
        needs = ctx.needs_input_grad[4:]
        self.needs = needs[0], needs[1:1 + states], needs[1 + states:]


def _whole(ctx, grad_spikes: Tensor | None, grad_final, into: Tensor | None):
    saved = _Saved(ctx)
    x, affine, norm = _input(ctx, saved.all)
    if into is not None and (into.dtype != x.dtype or into.stride() != x.stride()):
        into = None
    grad_x, grad_state, grad_params, *sums = ctx.backend.backward(
        ctx.spec, x, saved.state, saved.params, saved.anchors, grad_spikes, grad_final, (None,) * len(saved.state),
        *saved.needs, bits=saved.bits, affine=affine, into=into, sums=norm is not None)
    if norm is not None and sums[0] is not None:
        BatchNorm.note_sums(norm, grad_x, sums[0])
    return grad_x, grad_state, grad_params


def _chunks(ctx, grad_spikes: Tensor | None) -> Chunks | None:
    """Over which parts of the batch to go: where the chain is conv -> batch norm -> this, and policy.py wants it."""
    norm = ctx.kept.link
    if norm is None or type(norm)._forward_cls is not BatchNorm or norm.rebuilt is not None:
        return None
    conv = norm.kept.link
    if conv is None or type(conv)._forward_cls is not Conv or grad_spikes is None or not ctx.needs_input_grad[4]:
        return None
    saved = _Saved(ctx)
    if any(p.numel() > 1 for p in saved.params) or not in_chunks(conv, _bytes(grad_spikes), norm.policy):
        return None
    return chunks_of(norm.made, ctx.kept)


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _in_chunks(chunks: Chunks, ctx, grad_spikes: Tensor, grad_final, into: Tensor | None):
    """As _whole, with the conv's output rebuilt for some samples at a time."""
    saved, norm = _Saved(ctx), ctx.kept.link
    conv, affine = norm.kept.link, BatchNorm.affine(norm, norm.saved_tensors)
    steps, samples = ctx.kept.shape[:2]
    grad_x = into
    if grad_x is None:
        grad_x = torch.empty(ctx.kept.shape, dtype=grad_spikes.dtype, device=grad_spikes.device)
    bits = saved.bits.view(steps, samples, -1)
    parts, sums, grad_params = [], None, [None] * len(saved.params)
    for chunk in chunks:
        cut = lambda t: None if t is None else t[chunk]  # noqa: B023, E731
        y = Conv.rebuild_part(conv, chunks, chunk)
        y = y.view(steps, -1, *y.shape[1:])
        g = grad_spikes[:, chunk].contiguous()
        if steps == 1 and grad_x is not into:  # still a view of what is not ours to write over
            g = g.clone()
        anchors = None if saved.anchors is None else saved.anchors[:, :, chunk].contiguous()
        g, grad_state, of_params, part_sums = ctx.backend.backward(
            ctx.spec, y, [cut(s) for s in saved.state], saved.params, anchors, g, [cut(e) for e in grad_final],
            (None,) * len(saved.state), *saved.needs, bits=bits[:, chunk].reshape(steps, -1), affine=affine, into=g,
            sums=True)
        if part_sums is None:
            part_sums = kernels.norm_sums(g.flatten(0, 1), y.flatten(0, 1))
        sums = part_sums if sums is None else sums + part_sums
        grad_x[:, chunk].copy_(g)
        parts.append(grad_state)
        grad_params = [g if total is None else total + g for total, g in zip(grad_params, of_params)]
    BatchNorm.note_sums(norm, grad_x, sums)
    norm.chunks = chunks
    grad_state = [None if g[0] is None else torch.cat(g) for g in zip(*parts)]
    return grad_x, grad_state, grad_params


def _input(ctx, saved):
    """(x, None, None), or (y, (scale, shift), the norm's node) where x = fma(y, scale, shift) channel by channel."""
    kept: Kept = ctx.kept
    link = kept.link
    if link is None or type(link)._forward_cls is not BatchNorm:
        return value_of(kept, saved), None, None
    z: Made = link.made
    if kept.shape[2:] != z.shape[1:] or kept.stride[2:] != z.stride[1:]:  # the channels are somewhere else now
        return value_of(kept, saved), None, None
    of_norm = link.saved_tensors
    return seen_as(Norm.input_of(link, of_norm), z, kept), BatchNorm.affine(link, of_norm), link
