"""Spikes of single steps, kept as bits when a step is first run and given again when it is rebuilt.

Every fused neuron calls functional.multi_step, in both frameworks and in both coding styles; within one step of a
module the calls come in the same order each time, so the i-th call of step t finds its bits by (t, i). A rebuilt
potential may be an ulp off (another order of additions on a GPU, or a state that was solved for), and asked again
whether it fires it may answer otherwise: one flip is a wrong gradient. So a rebuilt neuron is never asked.
"""
from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from . import backends
from .backends import reference
from .layout import layout_of
from .spec import Outputs, Spec
from .spikes import unpack

__all__ = ["Tape", "current"]

_current: ContextVar[Tape | None] = ContextVar("tape", default=None)


def current() -> Tape | None:
    return _current.get()


class Tape:
    """bits[t][i]: of the i-th call in step t, uint8 [1, ceil(N / 8)]; None: the call could not be taped."""

    def __init__(self):
        self.bits: list[list[Tensor | None]] = []
        self._given: list[Tensor | None] | None = None
        self._calls = 0

    @property
    def bytes(self) -> int:
        return sum(b.numel() for step in self.bits for b in step if b is not None)

    @contextmanager
    def recording(self):
        """One step is run for the first time."""
        self.bits.append([])
        with self._on(None):
            yield

    @contextmanager
    def giving(self, t: int):
        """Step t is run again."""
        with self._on(self.bits[t]):
            yield

    @contextmanager
    def _on(self, given):
        self._given, self._calls = given, 0
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self._given = None

    def step(self, dynamics, surrogate, spike_dtype, x: Tensor, state, params) -> Outputs | None:
        """One call of functional.multi_step with T = 1, or None if it is to run as ever."""
        backend = backends.choose(dynamics, surrogate, x.device, "auto")
        fits = backend is not reference and surrogate.fn is None and x.shape[0] == 1
        i, self._calls = self._calls, self._calls + 1
        if self._given is None:
            if not fits:
                self.bits[-1].append(None)
                return None
            out = backend.forward(Spec(dynamics, surrogate, spike_dtype, False, True), x, state, params, keep=False)
            self.bits[-1].append(out.bits)
            return out
        bits = self._given[i] if i < len(self._given) else None
        if bits is None or not fits:
            return None
        spec = Spec(dynamics, surrogate, spike_dtype, False, True)
        flat = _Rebuilt.apply(spec, backend, bits, x, *state, *params)
        count = len(dynamics.states)
        return Outputs(flat[0], flat[1:1 + count])


class _Rebuilt(torch.autograd.Function):
    """A single step whose spikes are known."""

    @staticmethod
    def forward(ctx, spec, backend, bits, x, *tensors):
        count = len(spec.dynamics.states)
        state, params = tensors[:count], tensors[count:]
        out = backend.forward(spec, x, state, params, keep=True)
        if not torch.equal(out.bits, bits):
            spikes = unpack(bits, layout_of(x), torch.bool)
            out = reference.loop(spec, x, state, params, spikes)
        ctx.spec, ctx.backend = spec, backend
        ctx.save_for_backward(x, *state, *params, bits)
        ctx.set_materialize_grads(False)
        return out.spikes, *out.final

    @staticmethod
    def backward(ctx, grad_spikes, *grad_final):
        x, *tensors, bits = ctx.saved_tensors
        count = len(ctx.spec.dynamics.states)
        needs = ctx.needs_input_grad[3:]
        grad_x, grad_state, grad_params = ctx.backend.backward(
            ctx.spec, x, tensors[:count], tensors[count:], None, grad_spikes, grad_final, (None,) * count, needs[0],
            needs[1:1 + count], needs[1 + count:], bits=bits)
        return None, None, None, grad_x, *grad_state, *grad_params
