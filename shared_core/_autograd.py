"""The autograd node of a fused neuron: what is saved, and where the gradients come from."""
from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import reference
from .errors import MemextError
from .layout import layout_of
from .spec import Outputs, Spec
from .spikes import pack

__all__ = ["NO_FORWARD_MODE", "keep_inputs", "run"]

NO_FORWARD_MODE = ("functional: forward-mode differentiation (jvp, dual tensors) was asked for; a fused neuron knows "
                   "reverse mode only: use backward(), torch.autograd.grad or torch.func.vjp")
NO_DOUBLE_BACKWARD = ("functional: double backward (create_graph=True) through a single step needs the step's input, "
                      "which is not kept; run the forward pass under shared_core.functional.keep_inputs(), or all "
                      "steps in one call")
_inputs_kept: ContextVar[bool] = ContextVar("inputs_kept", default=False)


@contextmanager
def keep_inputs():
    """Single steps run inside keep their input for the backward pass, too: 4 B more per element, and then double
    backward (create_graph=True) works through them, as it always does through sequences."""
    token = _inputs_kept.set(True)
    try:
        yield
    finally:
        _inputs_kept.reset(token)


def run(spec: Spec, backend: ModuleType, x: Tensor, state: tuple[Tensor | None, ...], params: tuple[Tensor, ...]
        ) -> Outputs:
    """Forward through `backend`, recorded for autograd if any input needs a gradient."""
    if forward_ad._current_level >= 0 and any(
            t is not None and forward_ad.unpack_dual(t).tangent is not None for t in (x, *state, *params)):
        raise MemextError(NO_FORWARD_MODE)  # without a gradient asked for, the tangent would be dropped silently
    if torch.is_grad_enabled() and _learns(spec.surrogate.fn):
        return traced(spec, x, state, params)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *state, *params))):
        return backend.forward(spec, x, state, params, keep=False)
    learn = any(p.requires_grad for p in params)
    # At rest, the input alone is as small as a trace.
    stepping = x.shape[0] * spec.groups == 1 and any(s is not None for s in state)
    if stepping and backend is not reference and _trace_suffices(spec, learn):
        flat = _SingleStep.apply(spec, backend, x, *state, *params)
    else:
        flat = _MultiStep.apply(spec, backend, x, *state, *params)
    count = len(spec.dynamics.states)
    return Outputs(flat[0], flat[1:1 + count], flat[1 + count:1 + 2 * count] if spec.record else (),
                   flat[-1] if spec.bits else None)


def traced(spec: Spec, x: Tensor, state: tuple[Tensor | None, ...], params: tuple[Tensor, ...]) -> Outputs:
    """The reference loop under Torch's own autograd, which keeps every step and finds every tensor that learns."""
    out = reference.loop(spec, x, state, params)
    if spec.bits:
        out.bits = pack(out.spikes.detach())
    return out


def _learns(fn, depth: int = 3) -> bool:
    """Whether an opaque surrogate holds tensors that need a gradient: they are no inputs of the node below."""
    if isinstance(fn, Tensor):
        return fn.requires_grad
    if isinstance(fn, torch.nn.Module):
        return any(p.requires_grad for p in fn.parameters())
    if fn is None or depth == 0:
        return False
    held = [getattr(fn, "__self__", None), getattr(fn, "func", None), *getattr(fn, "args", ()),
            *(getattr(fn, "keywords", None) or {}).values(), *getattr(fn, "__dict__", {}).values()]
    for cell in getattr(fn, "__closure__", None) or ():
        with suppress(ValueError):  # a cell not yet filled
            held.append(cell.cell_contents)
    return any(_learns(part, depth - 1) for part in held if not isinstance(part, str | int | float | bool | type))


class _MultiStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spec, backend, x, *tensors):
        count = len(spec.dynamics.states)
        state, params = tensors[:count], tensors[count:]
        ctx.spec, ctx.backend = spec, backend
        ctx.random_state = _random_state(spec, x)
        out = backend.forward(spec, x, state, params, keep=True)
        ctx.save_for_backward(x, *state, *params, out.anchors)
        ctx.set_materialize_grads(False)
        if out.bits is None:
            return out.spikes, *out.final, *out.sequence
        ctx.mark_non_differentiable(out.bits)
        return out.spikes, *out.final, *out.sequence, out.bits

    @staticmethod
    def backward(ctx, *grads):
        spec, count = ctx.spec, len(ctx.spec.dynamics.states)
        x, *tensors, anchors = ctx.saved_tensors
        state, params = tensors[:count], tensors[count:]
        needs = ctx.needs_input_grad[2:]
        # create_graph=True: the gradient must itself be differentiable, so it is built from the reference.
        backend = reference if torch.is_grad_enabled() else ctx.backend
        with _replayed(ctx.random_state, x):
            grad_x, grad_state, grad_params = backend.backward(
                spec, x, state, params, anchors, grads[0], grads[1:1 + count],
                grads[1 + count:1 + 2 * count] if spec.record else (None,) * count,
                needs[0], needs[1:1 + count], needs[1 + count:])
        return None, None, grad_x, *grad_state, *grad_params

    @staticmethod
    def jvp(ctx, *tangents):
        raise MemextError(NO_FORWARD_MODE)


def _trace_suffices(spec: Spec, learn: bool) -> bool:
    _, reads_input = spec.dynamics.backward_reads(learn)
    return not (reads_input or spec.record or spec.bits or _inputs_kept.get())


class _SingleStep(torch.autograd.Function):
    """One step from a given state, for callers that step through time: keeps the trace, not the input and the state.

    snnTorch's Leaky and Synaptic keep nothing of their own that way: the trace is the state they hand out.
    """

    @staticmethod
    def forward(ctx, spec, backend, x, *tensors):
        count = len(spec.dynamics.states)
        state, params = tensors[:count], tensors[count:]
        ctx.spec, ctx.backend = spec, backend
        ctx.input = x.dtype, x.device, layout_of(x)
        out = backend.forward(spec, x, state, params, keep=True, traces=True)
        reads_state, _ = spec.dynamics.backward_reads(any(ctx.needs_input_grad[3 + count:]))
        ctx.state_dtypes = [None if s is None else s.dtype for s in state]
        ctx.save_for_backward(*out.traces, *(state if reads_state else ()), *params)
        ctx.reads_state = reads_state
        ctx.set_materialize_grads(False)
        return out.spikes, *out.final

    @staticmethod
    def backward(ctx, grad_spikes, *grad_final):
        if torch.is_grad_enabled():
            raise MemextError(NO_DOUBLE_BACKWARD)
        dynamics = ctx.spec.dynamics
        count, traces, saved = len(dynamics.states), dynamics.traces, ctx.saved_tensors
        state = saved[traces:traces + count] if ctx.reads_state else (None,) * count
        params = saved[len(saved) - len(dynamics.params):]
        needs = ctx.needs_input_grad[2:]
        grad_x, grad_state, grad_params = ctx.backend.single_step_backward(
            ctx.spec, *ctx.input, saved[:traces], state, params, grad_spikes, grad_final,
            needs[0], needs[1:1 + count], needs[1 + count:])
        grad_state = [g if g is None else g.to(dtype) for g, dtype in zip(grad_state, ctx.state_dtypes)]
        return None, None, grad_x, *grad_state, *grad_params

    @staticmethod
    def jvp(ctx, *tangents):
        raise MemextError(NO_FORWARD_MODE)


# Surrogates that draw random numbers are run twice; the second run must draw the same ones.

def _random_state(spec: Spec, x: Tensor):
    if not spec.surrogate.random:
        return None
    return torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None


def _replayed(random_state, x: Tensor):
    return nullcontext() if random_state is None else _Replay(random_state, x.device)


class _Replay:
    def __init__(self, random_state, device):
        self.random_state, self.device = random_state, device

    def __enter__(self):
        self.fork = torch.random.fork_rng([self.device] if self.random_state[1] is not None else [])
        self.fork.__enter__()
        torch.set_rng_state(self.random_state[0])
        if self.random_state[1] is not None:
            torch.cuda.set_rng_state(self.random_state[1], self.device)

    def __exit__(self, *error):
        return self.fork.__exit__(*error)
