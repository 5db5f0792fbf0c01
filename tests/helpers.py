"""The shared table of neurons, shapes, dtypes and tolerances, the inputs that drive neurons over their threshold, and
the oracle: a float64 autograd run that fires where the float32 run fired.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared_core import functional, surrogate
from shared_core.dynamics import IF, KLIF, LIF, RESETS, Dynamics, Leaky, ParametricLIF, Synaptic

# ---- tolerances, each with its reason ---------------------------------------------------------------------------

EXACT = 0.0        # spikes, states, bits: the same operations in the same order, rounded alike
GRADIENT = 1e-5    # norm-relative, against float64: rounding of a float32 sum over some 70 steps, with room
TWICE = 2.0        # ... or twice the reference's own float32 error, where a steep surrogate amplifies rounding
GRADIENT64 = 1e-12  # float64 kernels against float64 autograd: other order of the same few operations
HALF = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # gradients are rounded once, to 2^-11 or 2^-8, on the way out

STEPS = (1, 7, 32, 33, 70)  # one; fewer than a block; a block; one more; more than two
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# ---- neurons ----------------------------------------------------------------------------------------------------

def _sj(make, **options):
    return [make(v_th=0.7, v_reset=r, detach_reset=d, **options) for r in (None, -0.5, 0.0) for d in (False, True)]


# No threshold, time constant or reset value is at a default that would hide its being ignored.
NEURONS: dict[str, list[Dynamics]] = {
    "IF": _sj(IF),
    "LIF": _sj(LIF, tau=3.0, decay_input=True) + _sj(LIF, tau=1.7, decay_input=False),
    "ParametricLIF": _sj(ParametricLIF, decay_input=True) + _sj(ParametricLIF, decay_input=False),
    "KLIF": [KLIF(0.7, r, detach, 3.0, decay, scale) for r, detach in ((None, False), (-0.5, True), (-0.5, False))
             for decay in (False, True) for scale in (False, True)],
    "Leaky": [Leaky(reset, delay) for reset in RESETS for delay in (True, False)],
    "Synaptic": [Synaptic(reset, delay) for reset in RESETS for delay in (True, False)],
}
ALL_NEURONS = [d for variants in NEURONS.values() for d in variants]

_RANGES = {"q": (0.2, 0.9), "k": (0.7, 1.5), "alpha": (0.2, 0.8), "beta": (0.3, 0.95), "threshold": (0.6, 1.2),
           "scale": (0.5, 2.0)}


def name_of(d: Dynamics) -> str:
    """Test id: LIF-r-0.5-detach-decay."""
    parts = [d.name]
    for field, value in d.__dict__.items():
        short = {"v_reset": f"r{value}", "detach_reset": "detach" if value else "", "v_th": "",
                 "decay_input": "decay" if value else "nodecay", "tau": f"tau{value}",
                 "reset_delay": "delay" if value else "now",
                 "scale_reset": "scaled" if value else ""}.get(field, str(value))
        parts += [short] if short else []
    return "-".join(parts)


def params_for(d: Dynamics, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random parameters of the given shape, () for one value each, inside their usual ranges."""
    return tuple(torch.empty(tuple(shape), dtype=dtype).uniform_(*_RANGES[name]) for name in d.params)


# ---- surrogates: one smooth, one steep, one with a kink, one that is zero almost everywhere ---------------------

SURROGATES = (surrogate.atan(alpha=2.0), surrogate.sigmoid(alpha=4.0), surrogate.fast_sigmoid(slope=25.0),
              surrogate.rectangle(gamma=0.8))


# ---- inputs that matter -----------------------------------------------------------------------------------------

def driving(d: Dynamics, steps: int, shape: Sequence[int], params: Sequence[Tensor] = (),
            state: Sequence[Tensor | None] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Input [steps, *shape] that fires at a usual rate. In the first step every third neuron sits on its threshold,
    or one ulp of the input beside it; later a fifth of the inputs lies on a grid that meets the threshold again."""
    x = torch.randn(steps, *shape, dtype=torch.float64) * 0.8 + 0.35
    if x[0].numel() == 0:
        return x.to(dtype)
    x = torch.where(torch.rand_like(x) < 0.2, (x * 4).round() / 4, x)
    met, gain = on_threshold(d, x[0], params, state)
    x = x / gain.where(gain != 0, 1.0)  # an input that the neuron divides by tau is given tau times as strong
    # No input meets the threshold where the reset of the state passed in sets the potential to 0 (Synaptic, zero).
    third = torch.arange(x[0].numel()).view(x[0].shape) % 3 == 0
    x[0] = torch.where(third & (gain != 0), met, x[0])
    return x.to(dtype)


def on_threshold(d: Dynamics, like: Tensor, params: Sequence[Tensor], state: Sequence[Tensor | None] | None
                 ) -> tuple[Tensor, Tensor]:
    """(input that brings h to the threshold in one step, dh/dx). h is affine in x (KLIF: where it is
    positive), so two probes at strong inputs give both."""
    def excess(x: float) -> Tensor:
        seen = []

        def spike(z):
            seen.append(z)
            return (z > 0 if d.strict else z >= 0).to(z.dtype)

        start = tuple(torch.full_like(like, rest) if s is None else s.double()
                      for s, rest in zip(state or (None,) * len(d.states), d.rest))
        d.step(torch.full_like(like, x), start, tuple(p.double() for p in params), spike)
        return seen[-1].expand(like.shape)

    low, high = excess(8.0), excess(9.0)
    x = (8.0 - low / (high - low)).float()
    side = torch.arange(x.numel()).view(x.shape) // 3 % 3  # exactly, one ulp above, one ulp below
    x = torch.where(side == 1, torch.nextafter(x, torch.full_like(x, math.inf)), x)
    x = torch.where(side == 2, torch.nextafter(x, torch.full_like(x, -math.inf)), x)
    return x.double(), high - low


def assert_fires(spikes: Tensor, low: float = 0.05, high: float = 0.9) -> float:
    """Some fired and some did not, or the comparison says nothing. Returns the firing rate."""
    rate = (spikes != 0).double().mean().item()
    assert low <= rate <= high, f"firing rate {rate:.3f} outside [{low}, {high}]: this input tests nothing"
    return rate


# ---- comparisons ------------------------------------------------------------------------------------------------

def assert_bit_equal(got: Tensor, wanted: Tensor, what: str = "") -> None:
    """The same dtype, shape and values; NaN nowhere."""
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (what, got.dtype, got.shape, wanted.shape)
    assert not got.isnan().any() if got.is_floating_point() else True, f"{what}: NaN"
    assert torch.equal(got, wanted), f"{what}: {(got != wanted).sum().item()} of {got.numel()} values differ"


def error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted, in float64."""
    if wanted.numel() == 0:
        return 0.0
    norm = wanted.double().norm().item()
    return (got.double() - wanted.double()).norm().item() / (norm or 1.0)


@dataclass
class Run:
    """A call and its gradients. grads: of x, then of the states given, then of the parameters."""

    out: functional.MultiStep
    grads: tuple[Tensor, ...]


def weights_for(out: functional.MultiStep) -> list[Tensor]:
    """Random upstream gradients, one per differentiable output, on a grid that every dtype represents."""
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(t.shape, generator=generator) * 8).round() / 8
            for t in (out.spikes, *out.state, *out.sequence)]


def run(d: Dynamics, x: Tensor, state: Sequence[Tensor | None] | None, params: Sequence[Tensor], *, backend: str,
        surrogate=SURROGATES[0], **options) -> Run:
    """Forward and backward on fresh leaves that keep the strides of what was given."""
    leaf = lambda t: None if t is None else t.detach().requires_grad_()  # noqa: E731
    x, params = leaf(x), [leaf(p) for p in params]
    state = None if state is None else [leaf(s) for s in state]
    out = functional.multi_step(d, x, state, params, surrogate=surrogate, backend=backend, **options)
    outputs = (out.spikes, *out.state, *out.sequence)
    inputs = [x, *(s for s in state or () if s is not None), *params]
    grads = torch.autograd.grad(outputs, inputs, [w.to(o.dtype) for w, o in zip(weights_for(out), outputs)],
                                allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads)]
    return Run(out, tuple(grads))


class _Forced(torch.autograd.Function):
    """Spikes decided elsewhere, with the surrogate's derivative at this z."""

    @staticmethod
    def forward(ctx, z, fired, sg):
        ctx.save_for_backward(z)
        ctx.sg = sg
        return fired.to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.sg.grad(*ctx.saved_tensors), None, None


def oracle(d: Dynamics, x: Tensor, state: Sequence[Tensor | None] | None, params: Sequence[Tensor],
           sg=SURROGATES[0], record: bool = False, online: bool = False) -> Run:
    """Plain float64 autograd. Each decision to fire is that of a float32 (for float64 input: float64) run.

    online: the state before each step is detached.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    decisions: list[Tensor] = []

    def decide(z):
        decisions.append(z > 0 if d.strict else z >= 0)
        return decisions[-1].to(z.dtype)

    def steps(x, state, params, spike):
        state = state or (None,) * len(d.states)
        now = tuple(torch.full(x.shape[1:], r, dtype=x.dtype) if s is None else s for s, r in zip(state, d.rest))
        spikes, seen = [], []
        for x_t in x:
            if online:
                now = tuple(s.detach() for s in now)
            s, now = d.step(x_t, now, params, spike)
            spikes.append(s)
            seen.append(now)
        sequence = tuple(torch.stack(s) for s in zip(*seen)) if record else ()
        return functional.MultiStep(torch.stack(spikes), now, sequence, None)

    cast = lambda t, dtype: None if t is None else t.detach().to(dtype)  # noqa: E731
    with torch.no_grad():
        steps(cast(x, compute), state and [cast(s, compute) for s in state], [cast(p, compute) for p in params], decide)
    leaf = lambda t: None if t is None else t.detach().double().requires_grad_()  # noqa: E731
    x, params, replay = leaf(x), [leaf(p) for p in params], iter(decisions)
    state = state and [leaf(s) for s in state]
    out = steps(x, state, params, lambda z: _Forced.apply(z, next(replay), sg))
    outputs = (out.spikes, *out.state, *out.sequence)
    inputs = [x, *(s for s in state or () if s is not None), *params]
    grads = torch.autograd.grad(outputs, inputs, [w.double() for w in weights_for(out)], allow_unused=True)
    return Run(out, tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads)))


def assert_gradients(native: Run, reference: Run, truth: Run, dtype: torch.dtype = torch.float32) -> None:
    """The exactness contract: within max(1e-5, twice the reference's own error) of the float64 oracle."""
    for i, (got, plain, wanted) in enumerate(zip(native.grads, reference.grads, truth.grads, strict=True)):
        bound = GRADIENT64 if dtype == torch.float64 else max(GRADIENT, TWICE * error(plain, wanted),
                                                              HALF.get(dtype, 0.0))
        assert error(got, wanted) <= bound, f"gradient {i}: {error(got, wanted):.2e} > {bound:.2e}"
