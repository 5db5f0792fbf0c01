"""What a neuron is: parameters, state, one step written in plain Torch, and which struct of kernels/neuron.h runs it.

One frozen dataclass per neuron. `step` is the reference: the framework's own operation order, written from its
equations, differentiable, any float dtype. The kernels are written apart, so that the two can disagree in a test.
`variant` and `constants` are how the struct is told the options. Symbols: x input, v or mem state, h (u in snnTorch)
potential before the spike, s spike, theta threshold.

How to add a neuron: docs/add_a_neuron.md.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .errors import MemextError

__all__ = ["DYNAMICS", "IF", "KLIF", "LIF", "Dynamics", "Leaky", "ParametricLIF", "Synaptic", "register"]

Spike = Callable[[Tensor], Tensor]  # surrogate's argument (h - theta) -> spike, 0 or 1, differentiable


@dataclass(frozen=True)
class Dynamics:
    """Base of every neuron description.

    states: names of what is carried between steps, each [N, *] in the arithmetic dtype.
    params: names of tensor parameters, each broadcastable to [N, *]; the rest of the options are dataclass fields.
    strict: fires on h - theta > 0 (snnTorch) instead of >= 0 (SpikingJelly).
    alphabet: what is emitted: "binary" (0 or 1), "scaled" (0 or one scale), "integer" or "real".
    struct: name in MEMEXT_NEURONS of kernels/neuron.h, or None: then it runs on the Torch path only.
    """

    states: ClassVar[tuple[str, ...]] = ("v",)
    params: ClassVar[tuple[str, ...]] = ()
    strict: ClassVar[bool] = False
    alphabet: ClassVar[str] = "binary"
    struct: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def variant(self) -> int:
        """Template argument V of the struct."""
        return 0

    @property
    def constants(self) -> tuple[float, ...]:
        """Scalars given to the struct's Const::from, at most 8."""
        return ()

    @property
    def rest(self) -> tuple[float, ...]:
        """State before the first step, one value per state."""
        return (0.0,) * len(self.states)

    @property
    def trace_is_state(self) -> bool:
        """The struct's Trace holds the state after the step, field by field."""
        return False

    @property
    def traces(self) -> int:
        """Number of fields of the struct's Trace."""
        return 1

    def backward_reads(self, learn: bool) -> tuple[bool, bool]:
        """Whether one step's backward reads (the state before it, its input), besides the trace.

        learn: a parameter needs a gradient. As kNeedsBefore, kCarryNeedsBefore and kNeedsInput in neuron.h.
        """
        return True, True

    def step(self, x: Tensor, state: tuple[Tensor, ...], params: tuple[Tensor, ...],
             spike: Spike) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step. x [N, *]; returns (emitted [N, *], state after)."""
        raise NotImplementedError

    # ---- going back in time (temporal.unroll with tolerance) ----

    @property
    def rewinds(self) -> bool:
        """Whether `before` can solve a step for the state it started from."""
        return False

    def decay(self, params: tuple[Tensor, ...]) -> float:
        """The smallest factor by which a state is carried to the next step; errors of `before` grow by its inverse."""
        raise NotImplementedError

    def before(self, after: tuple[Tensor, ...], x: Tensor, fired: Tensor, fired_before: Tensor,
               params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state before a step, from the state after it, the input and the spikes (0 or 1) of this step and of the
        one before. All [N, *]."""
        raise NotImplementedError

    def to_json(self) -> str:
        return json.dumps([self.name, dataclasses.asdict(self)])

    @staticmethod
    def from_json(text: str) -> Dynamics:
        name, fields = json.loads(text)
        return DYNAMICS[name](**fields)


DYNAMICS: dict[str, type[Dynamics]] = {}


def register(cls: type[Dynamics]) -> type[Dynamics]:
    """Class decorator: makes a neuron known by its class name. A taken name is refused, both owners named."""
    known = DYNAMICS.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise MemextError(
            f"dynamics.register: the name {cls.__name__!r} is taken by {known.__module__}; "
            f"{cls.__module__} must choose another class name"
        )
    DYNAMICS[cls.__name__] = cls
    return cls


# ---- SpikingJelly 2.0.0 ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SpikingJelly(Dynamics):
    """Fire on h >= v_th, reset in the same step. v_reset=None is the soft reset.

    s = H(h - v_th);  v = h - s v_th (soft)  |  s v_reset + (1 - s) h (hard)
    Source: SpikingJelly 2.0.0, functional.voltage_reset.  detach_reset: s is a constant in the reset's gradient.
    """

    v_th: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = False

    def __post_init__(self):
        tau = getattr(self, "tau", 1.0)
        for field, value in (("v_th", self.v_th), ("v_reset", self.resting), ("tau", tau)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise MemextError(f"dynamics.{self.name}: {field} is {value!r}; a number is needed"
                                  + (" (or None, the soft reset)" if field == "v_reset" else ""))
        if tau <= 0:
            raise MemextError(f"dynamics.{self.name}: tau is {tau!r}; a time constant above 0 is needed (in steps; "
                              "SpikingJelly asks for more than 1)")

    @property
    def resting(self) -> float:
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def rest(self) -> tuple[float, ...]:
        return (self.resting,)

    @property
    def variant(self) -> int:
        return int(self.v_reset is not None)

    @property
    def constants(self) -> tuple[float, ...]:
        return (self.v_th, self.resting, getattr(self, "tau", 1.0), float(self.detach_reset))

    def backward_reads(self, learn: bool) -> tuple[bool, bool]:
        return learn, learn

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        s = s.detach() if self.detach_reset else s
        if self.v_reset is None:
            return h - s * self.v_th
        return s * self.v_reset + (1.0 - s) * h

    def charge(self, x: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        raise NotImplementedError

    def step(self, x, state, params, spike):
        h = self.charge(x, state[0], params)
        s = spike(h - self.v_th)
        return s, (self.reset(h, s),)


@register
@dataclass(frozen=True)
class IF(_SpikingJelly):
    """h = v + x.  Source: SpikingJelly 2.0.0, IFNode."""

    struct: ClassVar[str] = "IF"

    def charge(self, x, v, params):
        return v + x

    @property
    def rewinds(self):
        return self.v_reset is None

    def decay(self, params):
        return 1.0

    def before(self, after, x, fired, fired_before, params):
        return (after[0] + fired * self.v_th - x,)


@register
@dataclass(frozen=True)
class LIF(_SpikingJelly):
    """h = v + (x - (v - r)) / tau (decay_input)  |  v - (v - r) / tau + x;  r = v_reset, or 0 with soft reset.

    Source: SpikingJelly 2.0.0, LIFNode.
    """

    tau: float = 2.0
    decay_input: bool = True
    struct: ClassVar[str] = "LIF"

    @property
    def variant(self) -> int:
        return super().variant + 2 * self.decay_input

    def charge(self, x, v, params):
        d = v - self.resting
        if self.decay_input:
            return v + (x - d) / self.tau
        return v - d / self.tau + x

    @property
    def rewinds(self):
        return self.v_reset is None

    def decay(self, params):
        return 1 - 1 / self.tau

    def before(self, after, x, fired, fired_before, params):
        h = after[0] + fired * self.v_th
        if self.decay_input:
            return (h + (h - x) / (self.tau - 1),)
        y = h - x
        return (y + y / (self.tau - 1),)


@register
@dataclass(frozen=True)
class ParametricLIF(_SpikingJelly):
    """LIF with 1/tau = q = sigmoid(w), w learnable; q is given as a parameter, so Torch differentiates the sigmoid.

    Source: SpikingJelly 2.0.0, ParametricLIFNode (a product with q, not a division).
    """

    decay_input: bool = True
    params: ClassVar[tuple[str, ...]] = ("q",)
    struct: ClassVar[str] = "ParametricLIF"

    @property
    def variant(self) -> int:
        return super().variant + 2 * self.decay_input

    def backward_reads(self, learn):
        return learn, learn and self.decay_input

    def charge(self, x, v, params):
        (q,) = params
        d = v - self.resting
        if self.decay_input:
            return v + (x - d) * q
        return v - d * q + x

    @property
    def rewinds(self):
        return self.v_reset is None

    def decay(self, params):
        return 1 - float(params[0].max())

    def before(self, after, x, fired, fired_before, params):
        (q,), h = params, after[0] + fired * self.v_th
        return ((h - x * q if self.decay_input else h - x) / (1 - q),)


@register
@dataclass(frozen=True)
class KLIF(_SpikingJelly):
    """h = relu(k c), c the charge of LIF, k learnable.  scale_reset: h / k is reset, with the threshold v_th / k.

    Source: SpikingJelly 2.0.0, KLIFNode and functional.klif_step.
    """

    tau: float = 2.0
    decay_input: bool = True
    scale_reset: bool = False
    params: ClassVar[tuple[str, ...]] = ("k",)
    struct: ClassVar[str] = "KLIF"

    @property
    def variant(self) -> int:
        return super().variant + 2 * self.decay_input + 4 * self.scale_reset

    def step(self, x, state, params, spike):
        (v,), (k,) = state, params
        d = v - self.resting
        c = v + (x - d) / self.tau if self.decay_input else v - d / self.tau + x
        h = torch.relu(k * c)
        s = spike(h - self.v_th)
        if not self.scale_reset:
            return s, (self.reset(h, s),)
        kept = s.detach() if self.detach_reset else s
        if self.v_reset is None:
            return s, (h / k - kept * (self.v_th / k),)
        return s, (kept * self.v_reset + (1.0 - kept) * (h / k),)


# ---- snnTorch 1.0.0 -------------------------------------------------------------------------------------------

RESETS = ("subtract", "zero", "none")


@dataclass(frozen=True)
class _SnnTorch(Dynamics):
    """R = H(mem - threshold) of the state passed in, detached; s = H(u - threshold), strictly above; emitted: s scale.

    mem = u (reset_delay)  |  u - (s - R) threshold (subtract)  |  u - (s - R) u (zero)
    With reset_delay=False, s is not detached.  Source: snnTorch 1.0.0, SpikingNeuron and its subclasses' forward.
    """

    reset_mechanism: str = "subtract"
    reset_delay: bool = True
    strict: ClassVar[bool] = True
    alphabet: ClassVar[str] = "scaled"

    def __post_init__(self):
        if self.reset_mechanism not in RESETS:
            raise MemextError(
                f"dynamics.{self.name}: reset_mechanism is {self.reset_mechanism!r}; allowed: {', '.join(RESETS)}"
            )

    @property
    def variant(self) -> int:
        return RESETS.index(self.reset_mechanism) + 3 * (not self.reset_delay)

    @property
    def _same_step(self) -> bool:
        return not self.reset_delay and self.reset_mechanism != "none"

    @property
    def trace_is_state(self) -> bool:
        return not self._same_step

    @property
    def traces(self) -> int:
        return len(self.states) + self._same_step

    def backward_reads(self, learn: bool) -> tuple[bool, bool]:
        return learn or self.reset_mechanism == "zero" or self._same_step, False

    def fire(self, u: Tensor, reset: Tensor, threshold: Tensor, spike: Spike) -> tuple[Tensor, Tensor]:
        """(s, mem after the step)"""
        s = spike(u - threshold)
        if not self._same_step:
            return s, u
        return s, u - (s - reset) * (threshold if self.reset_mechanism == "subtract" else u)


@register
@dataclass(frozen=True)
class Leaky(_SnnTorch):
    """subtract: u = beta mem + x - R threshold      zero: u = beta ((1 - R) mem) + x      none: u = beta mem + x

    beta is expected clamped to [0, 1], as snnTorch clamps it.  Source: snnTorch 1.0.0, Leaky.forward.
    """

    states: ClassVar[tuple[str, ...]] = ("mem",)
    params: ClassVar[tuple[str, ...]] = ("beta", "threshold", "scale")
    struct: ClassVar[str] = "Leaky"

    def step(self, x, state, params, spike):
        (mem,), (beta, threshold, scale) = state, params
        reset = spike(mem - threshold).detach()
        if self.reset_mechanism == "subtract":
            u = beta * mem + x - reset * threshold
        elif self.reset_mechanism == "zero":
            u = beta * ((1 - reset) * mem) + x
        else:
            u = beta * mem + x
        s, mem = self.fire(u, reset, threshold, spike)
        return s * scale, (mem,)

    @property
    def rewinds(self):
        return self.reset_mechanism == "none" or (self.reset_mechanism == "subtract" and self.reset_delay)

    def decay(self, params):
        return float(params[0].min())

    def before(self, after, x, fired, fired_before, params):
        beta, threshold, _ = params
        if self.reset_mechanism == "none":
            return ((after[0] - x) / beta,)
        mem = (after[0] + fired_before * threshold - x) / beta
        # R is read off the state: one that fired must lie above the threshold, however the division rounds.
        above = torch.nextafter(threshold, torch.full_like(threshold, torch.inf))
        return (torch.where(fired_before > 0, torch.maximum(mem, above), torch.minimum(mem, threshold)),)


@register
@dataclass(frozen=True)
class Synaptic(_SnnTorch):
    """syn' = alpha syn + x;  m = beta mem + syn'.  subtract: u = m - R threshold;  zero: u = m - R m;  none: u = m

    alpha and beta are expected clamped to [0, 1].  Source: snnTorch 1.0.0, Synaptic.forward.
    """

    states: ClassVar[tuple[str, ...]] = ("syn", "mem")
    params: ClassVar[tuple[str, ...]] = ("alpha", "beta", "threshold", "scale")
    struct: ClassVar[str] = "Synaptic"

    def step(self, x, state, params, spike):
        (syn, mem), (alpha, beta, threshold, scale) = state, params
        reset = spike(mem - threshold).detach()
        syn = alpha * syn + x
        u = beta * mem + syn
        if self.reset_mechanism == "subtract":
            u = u - reset * threshold
        elif self.reset_mechanism == "zero":
            u = u - u * reset
        s, mem = self.fire(u, reset, threshold, spike)
        return s * scale, (syn, mem)
