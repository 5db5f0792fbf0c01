"""Solving a step for the state it started from, and how many steps that may go on before a kept state is needed.

An error e in the state becomes e / lam one step earlier, and each step adds a rounding of its own, so after k steps
    e(k) = u (lam^-k - 1) / (1 - lam)     with u = 2^-23 in float32, for states of the size of the threshold.
The gradient is off by the state's error times the slope of the surrogate's derivative, so the error allowed is
tolerance / steepest(surrogate). docs/design/unroll.md has measured figures.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._tape import Tape
from ..surrogate import Surrogate, spike

__all__ = ["steepest", "steps_between", "why_not"]

_USEFUL = 4  # fewer steps between kept states than this: replay keeps less


def why_not(tape: Tape, before: Sequence, after: Sequence) -> str | None:
    """None if every state of the step that was recorded last belongs to a neuron that can be solved for it.

    before, after: the program's states around that step.
    """
    known = {(id(b), id(a)): call for call in tape.calls if call is not None and call.dynamics.rewinds
             for b, a in zip(call.before, call.after) if b is not None}
    for i, (b, a) in enumerate(zip(before, after)):
        if b is a or not (isinstance(a, Tensor) and a.is_floating_point()):
            continue  # not changed by the step
        if (id(b), id(a)) not in known:
            return (f"state {i} of {len(after)} is not that of a neuron that can be solved for it (IF, LIF, "
                    "ParametricLIF with soft reset; Leaky with reset 'none', or 'subtract' with reset_delay)")
    return None


def steps_between(tape: Tape, tolerance: float) -> int:
    """Steps from one kept state to the next; 0: division is of no use at this tolerance."""
    calls = [call for call in tape.calls if call is not None]
    return min((_steps(call.dynamics.decay(call.params), tolerance / steepest(call.surrogate),
                       torch.finfo(call.after[0].dtype).eps) for call in calls), default=0)


def _steps(decay: float, allowed: float, unit: float) -> int:
    if decay <= 0:
        return 0
    if decay >= 1:
        k = int(min(allowed / unit, 1e4))
    else:
        k = int(math.log1p(allowed / unit * (1 - decay)) / -math.log(decay))
    return k if k >= _USEFUL else 0


@lru_cache(maxsize=256)
def steepest(surrogate: Surrogate) -> float:
    """How much an error of the state is magnified in a gradient: the largest slope of the surrogate's derivative g,
    |g(z + d) - g(z)| / d on a grid with d = 0.001 (1000 where g jumps by 1); at least max |g|, and at least 1."""
    with torch.enable_grad():
        z = torch.linspace(-4, 4, 8001, dtype=torch.float64).requires_grad_()  # d = 0.001
        g, = torch.autograd.grad(spike(z, surrogate, strict=False).sum(), z)
    return max(1.0, float(g.abs().max()), float(g.diff().abs().max()) * 1e3)
