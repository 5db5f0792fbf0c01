"""Spikes of single steps, kept as bits when a step is first run and given again when it is rebuilt.

Every fused neuron calls functional.multi_step, in both frameworks and in both coding styles; within one step of a
module the calls come in the same order each time, so the i-th call of step t finds its bits by (t, i). A rebuilt
potential may be an ulp off (another order of additions on a GPU, or a state that was solved for), and asked again
whether it fires it may answer otherwise: one flip is a wrong gradient. So a rebuilt neuron is never asked.

Three ways to run a step: `recording` (first run), `giving` (from the state before it), `solving` (from the state after
it: the state before is computed by division, Dynamics.before).
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import backends, coding
from .backends import reference
from .dynamics import Dynamics
from .layout import layout_of
from .spec import Outputs, Spec
from .surrogate import Surrogate

__all__ = ["Call", "Solved", "Tape", "current"]

_current: ContextVar[Tape | None] = ContextVar("tape", default=None)


def current() -> Tape | None:
    return _current.get()


@dataclass
class Call:
    """One call of the step that was recorded last."""

    dynamics: Dynamics
    surrogate: Surrogate
    params: tuple[Tensor, ...]
    before: tuple[Tensor | None, ...]
    after: tuple[Tensor, ...]


@dataclass
class Solved:
    """The states of a step that is run from the states after it.

    before: by the id of the tensor after the step, the leaf that stands for the state before it.
    known: the same ids, for states before the step that were kept: used as they are; `error` is then how far the
    division would have been off.
    """

    known: dict[int, Tensor] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)
    error: float = 0.0


class Tape:
    """bits[t][i]: of the i-th call in step t, uint8 [1, ceil(N / 8)]; None: the call could not be taped."""

    def __init__(self):
        self.bits: list[list[Tensor | None]] = []
        self.calls: list[Call | None] = []
        self._given: list[Tensor | None] | None = None
        self._earlier: list[Tensor | None] = []
        self._solved: Solved | None = None
        self._count = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The next step is run for the first time."""
        self.bits.append([])
        self.calls = []
        with self._on(None):
            yield

    @contextmanager
    def giving(self, t: int) -> Iterator[None]:
        """Step t is run again from the state before it."""
        with self._on(self.bits[t]):
            yield

    @contextmanager
    def solving(self, t: int, solved: Solved) -> Iterator[None]:
        """Step t, at least 1, is run again from the state after it."""
        with self._on(self.bits[t], self.bits[t - 1], solved):
            yield

    @contextmanager
    def _on(self, given, earlier=(), solved: Solved | None = None):
        self._given, self._earlier, self._solved, self._count = given, earlier, solved, 0
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self._given, self._solved = None, None

    def step(self, dynamics, surrogate, spike_dtype, x: Tensor, state, params) -> Outputs | None:
        """One call of functional.multi_step with T = 1; None: it is to run as ever."""
        backend = backends.choose(dynamics, surrogate, x.device, "auto")
        fits = backend is not reference and surrogate.fn is None and x.shape[0] == 1
        spec = Spec(dynamics, surrogate, spike_dtype, False, True)
        i, self._count = self._count, self._count + 1
        if self._given is None:
            return self._record(spec, backend, x, state, params) if fits else self._pass_by()
        bits = self._given[i] if i < len(self._given) else None
        if bits is None or not fits:
            return None
        after = None
        if self._solved is not None:
            after, state = state, self._solve(dynamics, x, state, params, bits, self._earlier[i])
        flat = _Rebuilt.apply(spec, backend, bits, after, x, *state, *params)
        return Outputs(flat[0], flat[1:1 + len(dynamics.states)])

    def _record(self, spec: Spec, backend, x, state, params) -> Outputs:
        out = backend.forward(spec, x, state, params, keep=False)
        self.bits[-1].append(out.bits)
        self.calls.append(Call(spec.dynamics, spec.surrogate, params, tuple(state), tuple(out.final)))
        return out

    def _pass_by(self) -> None:
        self.bits[-1].append(None)
        self.calls.append(None)

    def _solve(self, dynamics: Dynamics, x, after, params, bits, earlier) -> tuple[Tensor, ...]:
        solved, compute = self._solved, after[0].dtype
        with torch.no_grad():
            now, then = (_spikes(b, x, compute)[0] for b in (bits, earlier))
            found = dynamics.before(tuple(s.detach() for s in after), x[0].detach().to(compute), now, then,
                                    tuple(p.detach() for p in params))
        for s, value in zip(after, found):
            known = solved.known.get(id(s))
            if known is not None:
                solved.error = max(solved.error, float((value - known).abs().max()))
                value = known
            solved.before[id(s)] = value.detach().requires_grad_()
        return tuple(solved.before[id(s)] for s in after)


def _spikes(bits: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1, in the memory order in which the neurons of a step on x [1, *] lie."""
    layout = layout_of(x)
    like = layout.empty(1, dtype=dtype, device=torch.device("meta"))
    return coding.decode(*coding.from_step_bits(bits, like))


class _Rebuilt(torch.autograd.Function):
    """A single step whose spikes are known.  after: the states after it, if they are known, too."""

    @staticmethod
    def forward(ctx, spec, backend, bits, after, x, *tensors):
        count = len(spec.dynamics.states)
        state, params = tensors[:count], tensors[count:]
        if after is not None:
            spikes = _spikes(bits, x, spec.dtype_of_spikes(x))
            if spec.dynamics.alphabet == "scaled":
                spikes = spikes * params[-1].to(spikes.dtype)
            out = Outputs(spikes, tuple(s.detach() for s in after))
        else:
            out = backend.forward(spec, x, state, params, keep=True)
            if not torch.equal(out.bits, bits):
                out = reference.loop(spec, x, state, params, _spikes(bits, x, torch.float32).bool())
        ctx.spec, ctx.backend = spec, backend
        ctx.save_for_backward(x, *state, *params, bits)
        ctx.set_materialize_grads(False)
        return out.spikes, *out.final

    @staticmethod
    def backward(ctx, grad_spikes, *grad_final):
        x, *tensors, bits = ctx.saved_tensors
        count = len(ctx.spec.dynamics.states)
        needs = ctx.needs_input_grad[4:]
        grad_x, grad_state, grad_params = ctx.backend.backward(
            ctx.spec, x, tensors[:count], tensors[count:], None, grad_spikes, grad_final, (None,) * count, needs[0],
            needs[1:1 + count], needs[1 + count:], bits=bits)
        return None, None, None, None, grad_x, *grad_state, *grad_params
