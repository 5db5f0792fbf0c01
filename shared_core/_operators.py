"""The registered operators `memext::multi_step` and `memext::multi_step_backward`, for callers that trace or transform.

Eager calls take the autograd.Function of _autograd.py, which costs less per call. Under torch.compile, torch.export,
fake or meta tensors and torch.func, the same backends are reached through these operators, which carry what those
need: shapes and strides without data (fake), gradients, a second derivative through the reference, and vmap, which
folds the mapped dimension into the neurons.

A list argument with a None in it is opaque to Torch's autograd for operators, so optional tensors travel as the list of
those present and a mask. Surrogates that are Python functions cannot be written into an operator's schema: there the
reference loop itself is traced, which saves every step.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import backends
from ._autograd import NO_FORWARD_MODE, traced
from ._planning import is_planning
from .backends import reference
from .backends._call import BLOCK
from .dynamics import DYNAMICS, Dynamics
from .errors import MemextError
from .layout import Layout, layout_of
from .spec import Outputs, Spec
from .spikes import pack
from .surrogate import Surrogate

__all__ = ["run", "wanted"]

_functorch_active = torch._C._are_functorch_transforms_active


def wanted(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call with these tensors must go through the operators."""
    if torch.compiler.is_compiling():
        return True
    if _functorch_active():
        return True
    if is_planning():  # the operators keep more than the autograd.Function that the planned step will take
        return False
    if torch._C._len_torch_dispatch_stack():
        return _traced()
    return any(isinstance(t, FakeTensor) or (t is not None and t.is_meta) for t in tensors)


def _traced() -> bool:
    """A mode that records or fakes operators is on; modes that only watch real calls need nothing of us."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return any(isinstance(m, (FakeTensorMode, ProxyTorchDispatchMode)) for m in _get_current_dispatch_mode_stack())


def run(dynamics: Dynamics, surrogate: Surrogate, spike_dtype: torch.dtype | None, record: bool, bits: bool,
        online: bool, backend: str, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor],
        groups: int = 1) -> Outputs:
    """One call through the operator; opaque surrogates: the reference loop, traced."""
    if surrogate.fn is not None:
        spec = Spec(dynamics, surrogate, spike_dtype, record, bits, online, groups)
        return traced(spec, x, state, params)
    fields = tuple(_fixed(getattr(dynamics, name)) for name in type(dynamics).__match_args__)
    surrogate_params = tuple(_fixed(p) for p in surrogate.params)
    text, name = _constants(dynamics.name, fields, surrogate.name, surrogate_params, spike_dtype, record, bits,
                            online, groups, x.device.type, backend)
    present = [s for s in state if s is not None]
    given = [s is not None for s in state]
    if not torch.compiler.is_compiling() and _functorch_active():
        flat = _Transformed.apply(text, name, given, len(present), x, *present, *params)
    else:
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *present, *params))
        flat = multi_step(x, present, list(params), text, name, given, keep)
    return _named(flat, len(dynamics.states), record, bits)


def _fixed(value):
    """Under compile a number that changed between calls is a symbol: here each of its values gets its own graph."""
    if torch.compiler.is_compiling() and isinstance(value, float):
        from torch.fx.experimental.symbolic_shapes import guard_scalar
        return guard_scalar(value)
    return value


def _constants(dynamics: str, fields: tuple, surrogate: str, surrogate_params: tuple[float, ...],
               spike_dtype: torch.dtype | None, record: bool, bits: bool, online: bool, groups: int,
               device_type: str, backend: str) -> tuple[str, str]:
    """(spec as text, name of the backend). Plain values only, each of which a compiled graph is guarded on."""
    spec = Spec(DYNAMICS[dynamics](*fields), Surrogate(surrogate, surrogate_params), spike_dtype, record, bits,
                online, groups)
    if device_type == "meta":  # nothing will run: describe what the kernels of a real device would do
        fused = spec.dynamics.struct is not None and spec.surrogate.kernel_id is not None
        return spec.to_json(), "native" if fused and backend != "reference" else "reference"
    module = backends.choose(spec.dynamics, spec.surrogate, torch.device(device_type), backend)
    return spec.to_json(), module.__name__.rpartition(".")[2]


# What torch.compiler.assume_constant_result does: run at trace time, keep the result. The decorator itself would import
# the whole compiler (two seconds) when this package is imported.
_constants._dynamo_marked_constant = True


def _named(flat: Sequence[Tensor], count: int, record: bool, bits: bool) -> Outputs:
    end = 1 + count * (2 if record else 1)
    return Outputs(flat[0], tuple(flat[1:1 + count]), tuple(flat[1 + count:end]), flat[end] if bits else None)


def _spread(present: Sequence, mask: Sequence[bool]) -> list:
    """The list with None where the mask is False."""
    rest = iter(present)
    return [next(rest) if given else None for given in mask]


def _anchored(x: Tensor, spec: Spec, backend: str, keep: bool) -> bool:
    return keep and backend != "reference" and x.shape[0] * spec.groups > BLOCK


def _membrane(layout: Layout, spec: Spec) -> Layout:
    return layout.shared(spec.groups, spec.channel)[0]


def _dense(layout: Layout, t: Tensor, lead: int, dtype: torch.dtype) -> Tensor:
    """A copy with the strides that the fake kernel promises."""
    return layout.empty(*t.shape[:lead], dtype=dtype, device=t.device).copy_(t)


# ---- forward ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("memext::multi_step", mutates_args=())
def multi_step(x: Tensor, state: Sequence[Tensor], params: Sequence[Tensor], spec: str, backend: str,
               given: Sequence[bool], keep: bool) -> list[Tensor]:
    """-> [spikes, *final states, *recorded states, bits if asked for, anchors if kept]; see spec.Outputs.

    state: those given, `given` says which they are.  keep: also return what the backward operator reads.
    """
    described, layout = Spec.from_json(spec), layout_of(x)
    out = backends._module(backend).forward(described, x, _spread(state, given), params, keep=keep)
    if backend == "reference":
        compute, membrane = described.dtype_of_state(x), _membrane(layout, described)
        out.spikes = _dense(layout, out.spikes, 1, out.spikes.dtype)
        out.final = tuple(_dense(membrane, s, 0, compute) for s in out.final)
        out.sequence = tuple(_dense(membrane, s, 1, compute) for s in out.sequence)
    return [out.spikes, *out.final, *out.sequence, *([out.bits] if described.bits else ()),
            *([out.anchors] if _anchored(x, described, backend, keep) else ())]


@multi_step.register_fake
def _(x, state, params, spec, backend, given, keep):
    described, layout, steps = Spec.from_json(spec), layout_of(x), x.shape[0]
    count, compute = len(described.dynamics.states), described.dtype_of_state(x)
    membrane = _membrane(layout, described)
    new = lambda *lead: membrane.empty(*lead, dtype=compute, device=x.device)  # noqa: E731
    out = [layout.empty(steps, dtype=described.dtype_of_spikes(x), device=x.device), *(new() for _ in range(count))]
    if described.record:
        out += [new(steps) for _ in range(count)]
    if described.bits:
        out.append(torch.empty((steps, (layout.neurons + 7) // 8), dtype=torch.uint8, device=x.device))
    if _anchored(x, described, backend, keep):
        out.append(new((steps * described.groups - 1) // BLOCK, count))
    return out


def _save_forward(ctx, inputs, output):
    x, state, params, ctx.spec, ctx.backend, ctx.given, keep = inputs
    described = Spec.from_json(ctx.spec)
    ctx.count, ctx.states, ctx.record = len(state), len(described.dynamics.states), described.record
    anchors = output[-1] if _anchored(x, described, ctx.backend, keep) else None
    ctx.save_for_backward(x, *state, *params, anchors)
    ctx.mark_non_differentiable(*([anchors] if anchors is not None else ()),
                                *(t for t in output if t.dtype == torch.uint8))
    ctx.set_materialize_grads(False)


def _backward_of_forward(ctx, grads):
    x, *tensors, anchors = ctx.saved_tensors
    state, params = tensors[:ctx.count], tensors[ctx.count:]
    grads = list(grads[:1 + ctx.states * (2 if ctx.record else 1)])
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1], *ctx.needs_input_grad[2]]
    if any(g is not None for g in grads):
        found = multi_step_backward(x, state, params, anchors, [g for g in grads if g is not None], ctx.spec,
                                    ctx.backend, ctx.given, [g is not None for g in grads], needs)
    else:
        found = [None] * sum(needs)
    found = _spread(found, needs)
    return found[0], found[1:1 + ctx.count], found[1 + ctx.count:], None, None, None, None


multi_step.register_autograd(_backward_of_forward, setup_context=_save_forward)


# ---- backward ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("memext::multi_step_backward", mutates_args=())
def multi_step_backward(x: Tensor, state: Sequence[Tensor], params: Sequence[Tensor], anchors: Tensor | None,
                        grads: Sequence[Tensor], spec: str, backend: str, given: Sequence[bool],
                        has: Sequence[bool], needs: Sequence[bool]) -> list[Tensor]:
    """-> the gradients of those of (x, *state, *params) that `needs` marks.

    grads: of those of (spikes, *final states, *recorded states) that `has` marks.  given: as in multi_step.
    """
    described, layout = Spec.from_json(spec), layout_of(x)
    count = len(described.dynamics.states)
    upstream = _spread(grads, has)
    need_state = [bool(need) for need in _spread(needs[1:1 + len(state)], given)]
    with torch.no_grad(), _autograd_below(backend):
        grad_x, grad_state, grad_params = backends._module(backend).backward(
            described, x, _spread(state, given), params, anchors, upstream[0], upstream[1:1 + count],
            upstream[1 + count:] or (None,) * count, needs[0], need_state, needs[1 + len(state):])
    found = [_promised(layout, grad_x, 1, x)] if needs[0] else []
    found += [_promised(_membrane(layout, described), g, 0, s)
              for g, s, need in zip(_keep(grad_state, given), state, needs[1:]) if need]
    return found + [torch.zeros(p.shape, dtype=p.dtype, device=p.device) if g is None
                    else g.clone(memory_format=torch.contiguous_format)
                    for g, p, need in zip(grad_params, params, needs[1 + len(state):]) if need]


def _autograd_below(backend: str):
    """Autograd is switched off inside an operator; the reference differentiates its own replay with it."""
    if backend != "reference":
        return nullcontext()
    excluded = torch._C._dispatch_tls_local_exclude_set().remove(torch._C.DispatchKey.AutogradFunctionality)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def _keep(values: Sequence, mask: Sequence[bool]) -> list:
    return [v for v, given in zip(values, mask) if given]


def _promised(layout: Layout, g: Tensor | None, lead: int, like: Tensor) -> Tensor:
    if g is None:
        return layout.empty(*like.shape[:lead], dtype=like.dtype, device=like.device).zero_()
    return g if layout.is_dense(g, lead) and g.is_contiguous() else _dense(layout, g, lead, like.dtype)


@multi_step_backward.register_fake
def _(x, state, params, anchors, grads, spec, backend, given, has, needs):
    layout = layout_of(x)
    membrane = _membrane(layout, Spec.from_json(spec))
    out = [layout.empty(x.shape[0], dtype=x.dtype, device=x.device)] if needs[0] else []
    out += [membrane.empty(dtype=s.dtype, device=s.device) for s, need in zip(state, needs[1:]) if need]
    return out + [torch.empty(p.shape, dtype=p.dtype, device=p.device)
                  for p, need in zip(params, needs[1 + len(state):]) if need]


def _save_backward(ctx, inputs, output):
    x, state, params, _, grads, ctx.spec, _, ctx.given, ctx.has, ctx.needs = inputs
    ctx.counts = len(state), len(params), len(grads)
    ctx.save_for_backward(x, *state, *params, *grads)
    ctx.set_materialize_grads(False)


def _backward_of_backward(ctx, seconds):
    states, params, _ = ctx.counts
    found = _second(ctx.spec, ctx.given, ctx.has, ctx.needs, ctx.counts, ctx.saved_tensors, seconds)
    return (found[0], found[1:1 + states], found[1 + states:1 + states + params], None, found[1 + states + params:],
            None, None, None, None, None)


def _second(spec, given, has, needs, counts, saved, seconds) -> list[Tensor | None]:
    """The second derivative: the gradient, written with torch.func and the reference, differentiated once more."""
    described, states, inputs = Spec.from_json(spec), counts[0], 1 + counts[0] + counts[1]
    asked = [i for i, g in enumerate(seconds) if g is not None]
    if not asked:
        return [None] * len(saved)

    def outputs(*tensors):
        out = reference.loop(described, tensors[0], _spread(tensors[1:1 + states], given), tensors[1 + states:])
        return tuple(_keep((out.spikes, *out.final, *out.sequence), has))

    def gradients(*tensors):
        _, pull = torch.func.vjp(outputs, *tensors[:inputs])
        found = _keep(pull(tuple(tensors[inputs:])), needs)
        return tuple(found[i] for i in asked)

    _, pull = torch.func.vjp(gradients, *saved)
    return list(pull(tuple(seconds[i] for i in asked)))


multi_step_backward.register_autograd(_backward_of_backward, setup_context=_save_backward)


# ---- torch.func: an operator's autograd formula is not reached from its transforms, a Function's is ----------------


class _Transformed(torch.autograd.Function):
    generate_vmap_rule = True  # the rules registered below, through the operators called here

    @staticmethod
    def forward(spec, backend, given, states, x, *tensors):
        return tuple(multi_step(x, list(tensors[:states]), list(tensors[states:]), spec, backend, given, True))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, ctx.backend, ctx.given, ctx.present, x, *tensors = inputs
        described = Spec.from_json(ctx.spec)
        ctx.outputs = 1 + len(described.dynamics.states) * (2 if described.record else 1)
        anchors = output[-1] if _anchored(x, described, ctx.backend, True) else None
        ctx.mark_non_differentiable(*output[ctx.outputs:])
        ctx.save_for_backward(x, *tensors, anchors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        *tensors, anchors = ctx.saved_tensors
        grads, needs = grads[:ctx.outputs], list(ctx.needs_input_grad[4:])
        has = [g is not None for g in grads]
        if not any(has):
            return (None,) * (4 + len(needs))
        found = _TransformedBackward.apply(
            ctx.spec, ctx.backend, ctx.given, has, needs, (ctx.present, len(tensors) - 1 - ctx.present), anchors,
            *tensors, *_keep(grads, has))
        return None, None, None, None, *_spread(found, needs)

    @staticmethod
    def jvp(ctx, *tangents):
        raise MemextError(NO_FORWARD_MODE)


class _TransformedBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(spec, backend, given, has, needs, counts, anchors, x, *tensors):
        states, inputs = counts[0], sum(counts)
        return tuple(multi_step_backward(x, list(tensors[:states]), list(tensors[states:inputs]), anchors,
                                         list(tensors[inputs:]), spec, backend, given, has, needs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec, _, ctx.given, ctx.has, ctx.needs, ctx.counts, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *seconds):
        found = _second(ctx.spec, ctx.given, ctx.has, ctx.needs, ctx.counts, ctx.saved_tensors, seconds)
        return (None,) * 7 + tuple(found)

    @staticmethod
    def jvp(ctx, *tangents):
        raise MemextError(NO_FORWARD_MODE)


# ---- vmap: the mapped dimension becomes a dimension of neurons ----------------------------------------------------


def _fold(t: Tensor, dim: int | None, size: int, lead: int) -> Tensor:
    """[*lead, size, *shape]: the mapped dimension after the leading ones; expanded if there is none."""
    return t.unsqueeze(lead).expand(*t.shape[:lead], size, *t.shape[lead:]) if dim is None else t.movedim(dim, lead)


def _fold_param(p: Tensor, dim: int | None, size: int, rank: int) -> Tensor:
    """[size, *shape broadcastable to one sample]: one parameter set per sample."""
    p = _fold(p, dim, size, 0)
    own = p.shape[1:] if p.dim() - 1 <= rank else ()  # one value may have any rank
    return p.reshape(size, *(1,) * (rank - len(own)), *own)


@multi_step.register_vmap
def _(info, in_dims, x, state, params, spec, backend, given, keep):
    described, size = Spec.from_json(spec), info.batch_size
    x = _fold(x, in_dims[0], size, 1)
    state = [_fold(s, d, size, 0) for s, d in zip(state, in_dims[1])]
    params = [_fold_param(p, d, size, x.dim() - 2) for p, d in zip(params, in_dims[2])]
    plain = replace(described, bits=False, channel=described.channel + 1)
    out = list(multi_step(x, state, params, plain.to_json(), backend, given, keep))
    count = len(described.dynamics.states)
    dims = [1] + [0] * count + [1] * (count if described.record else 0)
    if described.bits:  # bits of the folded neurons would mix samples within a byte
        out.insert(len(dims), torch.stack([pack(s) for s in out[0].unbind(1)], 1))
        dims.append(1)
    return out, dims + [2] * (len(out) - len(dims))


@multi_step_backward.register_vmap
def _(info, in_dims, x, state, params, anchors, grads, spec, backend, given, has, needs):
    described, size = Spec.from_json(spec), info.batch_size
    count, spec = len(described.dynamics.states), replace(described, channel=described.channel + 1).to_json()
    shapes = [p.shape if d is None else p.movedim(d, 0).shape[1:] for p, d in zip(params, in_dims[2])]
    x = _fold(x, in_dims[0], size, 1)
    state = [_fold(s, d, size, 0) for s, d in zip(state, in_dims[1])]
    params = [_fold_param(p, d, size, x.dim() - 2) for p, d in zip(params, in_dims[2])]
    anchors = anchors if anchors is None else _fold(anchors, in_dims[3], size, 2)
    leads = _keep([1] + [0] * count + [1] * count, has)
    grads = [_fold(g, d, size, lead) for g, d, lead in zip(grads, in_dims[4], leads)]
    found = list(multi_step_backward(x, state, params, anchors, grads, spec, backend, given, has, needs))
    first = len(found) - sum(needs[1 + len(state):])
    for i, shape in zip(range(first, len(found)), _keep(shapes, needs[1 + len(state):])):
        found[i] = found[i].reshape(size, *shape)
    return found, ([1] if needs[0] else []) + [0] * (len(found) - needs[0])
