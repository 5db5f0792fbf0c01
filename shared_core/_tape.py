"""Spikes of the steps of a sequence, kept as bits when a step is first run and given again when it is rebuilt.

Every fused neuron calls functional.multi_step, in both frameworks and in both coding styles; within one step of a
module the calls come in the same order each time, so the i-th call of step t finds its bits by (t, i). A rebuilt
potential may be an ulp off (another order of additions on a GPU, or a state that was solved for), and asked again
whether it fires it may answer otherwise: one flip is a wrong gradient. So a rebuilt neuron is never asked.

Three ways to run a step: `recording` (first run), `giving` (from the state before it), `solving` (from the state after
it: the state before is computed by division, Dynamics.before). Where steps are done several at once, "step" means the
k of them together, and a call has T = k.
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
    """bits[t][i]: of the i-th call in step t, uint8 [T, ceil(N / 8)]; None: the call could not be taped."""

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

    def step(self, dynamics, surrogate, spike_dtype, record: bool, online: bool, groups: int, x: Tensor, state,
             params) -> Outputs | None:
        """One call of functional.multi_step; None: it is to run as ever."""
        backend = backends.choose(dynamics, surrogate, x.device, "auto")
        fits = backend is not reference and surrogate.fn is None
        spec = Spec(dynamics, surrogate, spike_dtype, record, True, online, groups)
        i, self._count = self._count, self._count + 1
        if self._given is None:
            return self._record(spec, backend, x, state, params) if fits else self._pass_by()
        bits = self._given[i] if i < len(self._given) else None
        if bits is None or not fits:
            return None
        states = None
        if self._solved is not None:
            state, states = self._solve(dynamics, x, state, params, bits, self._earlier[i])
        flat, count = _Rebuilt.apply(spec, backend, bits, states, x, *state, *params), len(dynamics.states)
        return Outputs(flat[0], flat[1:1 + count], flat[1 + count:])

    def _record(self, spec: Spec, backend, x, state, params) -> Outputs:
        out = backend.forward(spec, x, state, params, keep=False)
        self.bits[-1].append(out.bits)
        # A membrane that channel groups share takes `groups` steps at a time: too many divisions to solve them.
        solvable = spec.groups == 1
        self.calls.append(Call(spec.dynamics, spec.surrogate, params, tuple(state), tuple(out.final)) if solvable
                          else None)
        return out

    def _pass_by(self) -> None:
        self.bits[-1].append(None)
        self.calls.append(None)

    def _solve(self, dynamics: Dynamics, x, after, params, bits, earlier) -> tuple[tuple[Tensor, ...], list]:
        """(leaves for the states before these T steps, the states after each of them)"""
        solved, compute = self._solved, after[0].dtype
        states = [tuple(s.detach() for s in after)]
        with torch.no_grad():
            x, params = x.detach().to(compute), tuple(p.detach() for p in params)
            fired = [*_spikes(earlier[-1:], x[:1], compute), *_spikes(bits, x, compute)]
            for t in reversed(range(x.shape[0])):
                states.append(dynamics.before(states[-1], x[t], fired[t + 1], fired[t], params))
        for s, value in zip(after, states.pop()):
            known = solved.known.get(id(s))
            if known is not None:
                solved.error = max(solved.error, float((value - known).abs().max()))
                value = known
            solved.before[id(s)] = value.detach().requires_grad_()
        return tuple(solved.before[id(s)] for s in after), states[::-1]


def _spikes(bits: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1 [T, *], in the memory order in which the neurons of a step on x [T, *] lie."""
    like = layout_of(x).empty(x.shape[0], dtype=dtype, device=torch.device("meta"))
    return coding.decode(*coding.from_step_bits(bits, like))


class _Rebuilt(torch.autograd.Function):
    """A step whose spikes are known.  states: those after each of its T steps, if they are known, too."""

    @staticmethod
    def forward(ctx, spec, backend, bits, states, x, *tensors):
        count = len(spec.dynamics.states)
        state, params = tensors[:count], tensors[count:]
        if states is not None:
            spikes = _spikes(bits, x, spec.dtype_of_spikes(x))
            if spec.dynamics.alphabet == "scaled":
                spikes = spikes * params[-1].to(spikes.dtype)
            final = tuple(s.clone() if spec.record else s.detach() for s in states[-1])  # outputs share no memory
            out = Outputs(spikes, final, tuple(map(torch.stack, zip(*states))) if spec.record else ())
        else:
            out = backend.forward(spec, x, state, params, keep=True)
            if not torch.equal(out.bits, bits):
                out = reference.loop(spec, x, state, params, _spikes(bits, x, torch.float32).bool())
        ctx.spec, ctx.backend = spec, backend
        ctx.save_for_backward(x, *state, *params, bits, out.anchors)
        ctx.set_materialize_grads(False)
        return out.spikes, *out.final, *out.sequence

    @staticmethod
    def backward(ctx, grad_spikes, *grad_states):
        x, *tensors, bits, anchors = ctx.saved_tensors
        count = len(ctx.spec.dynamics.states)
        needs = ctx.needs_input_grad[4:]
        grad_x, grad_state, grad_params = ctx.backend.backward(
            ctx.spec, x, tensors[:count], tensors[count:], anchors, grad_spikes, grad_states[:count],
            grad_states[count:] or (None,) * count, needs[0], needs[1:1 + count], needs[1 + count:], bits=bits)
        return None, None, None, None, grad_x, *grad_state, *grad_params
