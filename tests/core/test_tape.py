"""The tape of spikes: kept as bits, given again, whatever the rebuilt potential says; and what breaks without it."""
from __future__ import annotations

import warnings

import pytest
import torch
from helpers import ALL_NEURONS, EXACT, SURROGATES, assert_fires, driving, name_of, params_for
from temporal_nets import (
    Explicit,
    assert_fire,
    assert_gradients,
    assert_values,
    chain,
    distance,
    firing,
    inputs,
    lif,
    run,
    starts,
    truth,
    weighted,
)
from torch import nn

from shared_core import _tape, functional
from shared_core._tape import Solved, Tape
from shared_core.dynamics import LIF, Leaky
from shared_core.surrogate import opaque
from shared_core.temporal import _division, _unrolled, unroll

SHAPE = (3, 37)  # 111 neurons: the last byte is not full
neurons = pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)


def call(d, x, state, params, **options):
    return functional.multi_step(d, x, state, params, **{"surrogate": SURROGATES[0], **options})


def kept_bytes(tape) -> int:
    return sum(b.numel() * b.element_size() for step in tape.bits for b in step if b is not None)


def case(d, steps=1, shape=()):
    params = params_for(d, shape)
    state = tuple(0.3 * torch.randn(SHAPE) for _ in d.states)
    return driving(d, steps, SHAPE, params, state), state, params


class _Forced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, fired):
        ctx.save_for_backward(z)
        return fired.to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * SURROGATES[0].grad(*ctx.saved_tensors), None


def forced(d, x, state, params, fired):
    """Steps by the equations, with spikes decided elsewhere; fired [T, N, *]. snnTorch's neurons ask twice a step: the
    first time for the reset, which is read off the state."""
    asked = []
    d.step(x[0], state, params, lambda z: (asked.append(z), (z > 0).to(z.dtype))[1])
    spikes = []
    for x_t, f in zip(x, fired):
        left = iter(range(len(asked) - 1, -1, -1))
        s, state = d.step(x_t, state, params,
                          lambda z, f=f, left=left: _Forced.apply(z, f if next(left) == 0 else z > 0))
        spikes.append(s)
    return torch.stack(spikes), state


def gradients(out, x, state, params):
    leaves = [t for t in (x, *state, *params) if t.requires_grad]
    grads = torch.autograd.grad(weighted([out[0]], out[1]), leaves, allow_unused=True)
    return {i: torch.zeros_like(t) if g is None else g for i, (t, g) in enumerate(zip(leaves, grads))}


def leaves(x, state, params):
    return (x.clone().requires_grad_(), tuple(s.clone().requires_grad_() for s in state),
            tuple(p.clone().requires_grad_() for p in params))


# ---- recording and giving ----

@neurons
def test_a_given_step_is_the_recorded_one(d):
    x, state, params = case(d)
    tape = Tape()
    with tape.recording(), torch.no_grad():
        first = call(d, x, state, params)
    alone = call(d, x, state, params)
    assert_fires(first.spikes)
    inside = leaves(x, state, params)
    with tape.giving(0):
        again = call(d, *inside)
    for got in (first, again):
        assert torch.equal(got.spikes, alone.spikes)
        assert all(torch.equal(a, b) for a, b in zip(got.state, alone.state))
    outside = leaves(x, state, params)
    wanted = call(d, *outside)
    assert_gradients(gradients((again.spikes, again.state), *inside),
                     gradients((wanted.spikes, wanted.state), *outside), EXACT)  # the same kernel on the same values
    assert kept_bytes(tape) == (111 + 7) // 8


@neurons
def test_a_rebuilt_neuron_is_not_asked_whether_it_fires(d):
    """Input that is off by far more than rounding: the spikes stay those that were kept, and so does what follows."""
    x, state, params = case(d)
    tape = Tape()
    with tape.recording(), torch.no_grad():
        kept = call(d, x, state, params).spikes != 0
    other = x + 0.3 * torch.randn_like(x)
    changed = ((call(d, other, state, params).spikes != 0) != kept).double().mean().item()
    assert changed > 0.02, "no spike would flip: this input tests nothing"
    inside, outside = leaves(other, state, params), leaves(other, state, params)
    with tape.giving(0):
        got = call(d, *inside)
    wanted = forced(d, *outside, kept)
    assert torch.equal(got.spikes, wanted[0])
    for a, b in zip(got.state, wanted[1]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # d.step need not add in the kernels' order
    assert_gradients(gradients((got.spikes, got.state), *inside), gradients(wanted, *outside))


@pytest.mark.parametrize("d", [LIF(0.7, None, False, 3.0, True), Leaky("zero", True)], ids=name_of)
@pytest.mark.parametrize("steps", [1, 5, 33])
def test_several_steps_in_one_call(d, steps):
    x, state, params = case(d, steps)
    tape = Tape()
    with tape.recording(), torch.no_grad():
        first = call(d, x, state, params, record=True)
    inside, outside = leaves(x, state, params), leaves(x, state, params)
    with tape.giving(0):
        got = call(d, *inside, record=True)
    wanted = call(d, *outside, record=True)
    for a, b, c in zip((got.spikes, *got.state, *got.sequence), (wanted.spikes, *wanted.state, *wanted.sequence),
                       (first.spikes, *first.state, *first.sequence)):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert_gradients(gradients((got.spikes, (*got.state, *got.sequence)), *inside),
                     gradients((wanted.spikes, (*wanted.state, *wanted.sequence)), *outside), EXACT)
    assert kept_bytes(tape) == steps * ((111 + 7) // 8)


def test_calls_are_told_apart_by_step_and_order():
    d = LIF(0.7, None, False, 3.0, True)
    tape, kept = Tape(), []
    x = driving(d, 6, SHAPE).unsqueeze(1)
    rest = (torch.zeros(SHAPE),)
    for t in range(3):
        with tape.recording():
            kept.append([call(d, x[2 * t], rest, ()).spikes, call(d, x[2 * t + 1], rest, ()).spikes])
    assert [len(step) for step in tape.bits] == [2, 2, 2]
    assert not torch.equal(kept[0][0], kept[0][1])
    for t in (2, 0, 1, 1):
        with tape.giving(t):
            for i in range(2):
                assert torch.equal(call(d, torch.zeros_like(x[0]), rest, ()).spikes, kept[t][i])


def test_what_is_not_taped_runs_as_ever():
    """Surrogates that are the user's functions; calls outside; a call more than were recorded."""
    d = LIF(0.7, None, False, 3.0, True)
    own = opaque(lambda z: (z >= 0).to(z), name="own", alphabet="binary", random=False)
    x, state, params = case(d)
    tape = Tape()
    with tape.recording():
        call(d, x, state, params, surrogate=own)
        first = call(d, x, state, params)
    assert tape.bits[0][0] is None and tape.bits[0][1] is not None
    other = x + 0.5
    plainly = call(d, other, state, params)
    assert not torch.equal(plainly.spikes, first.spikes)
    with tape.giving(0):
        assert torch.equal(call(d, other, state, params, surrogate=own).spikes, plainly.spikes)
        assert torch.equal(call(d, other, state, params).spikes, first.spikes)
        assert torch.equal(call(d, other, state, params).spikes, plainly.spikes)  # a third call: no bits
    assert torch.equal(call(d, other, state, params).spikes, plainly.spikes) and _tape.current() is None


def test_the_tape_is_off_after_an_error():
    tape = Tape()
    for mode in (tape.recording, lambda: tape.giving(0), lambda: tape.solving(1, Solved())):
        with pytest.raises(KeyError), mode():
            assert _tape.current() is tape
            if mode == tape.recording:
                with tape.recording():
                    pass
            raise KeyError
        assert _tape.current() is None


# ---- solving for the state before ----

@pytest.mark.parametrize("d", [d for d in ALL_NEURONS if d.rewinds], ids=name_of)
def test_solving(d):
    """The state before a step, from that after it; spikes are those that were kept, gradients those of the step."""
    x, state, params = case(d, 2, SHAPE[-1:])  # a parameter per neuron: a sum over all might cancel
    tape = Tape()
    middle = state
    for t in range(2):
        with tape.recording(), torch.no_grad():
            out = call(d, x[t:t + 1], middle, params)
        before, middle = middle, out.state
    inside, outside = leaves(x[1:], middle, params), leaves(x[1:], before, params)
    solved = Solved()
    with tape.solving(1, solved):
        got = call(d, *inside)
    found = tuple(solved.before[id(s)] for s in inside[1])
    assert torch.equal(got.spikes, out.spikes) and all(torch.equal(a, b) for a, b in zip(got.state, out.state))
    bound = 4 * 2.0 ** -23 / d.decay(params)  # a few roundings of values near 1, divided by the decay
    for a, b in zip(found, before):
        assert (a - b).abs().max() <= bound * max(1.0, b.abs().max().item())
    assert_fires(out.spikes)
    wanted = call(d, *outside)
    assert_gradients(gradients((got.spikes, got.state), inside[0], found, inside[2]),
                     gradients((wanted.spikes, wanted.state), *outside), 10 * max(1e-6, bound))
    known = Solved(known={id(s): b + 0.5 for s, b in zip(inside[1], before)})
    with tape.solving(1, known):
        call(d, *inside)
    assert all(torch.equal(known.before[id(s)], b + 0.5) for s, b in zip(inside[1], before))
    assert known.error == pytest.approx(0.5, abs=2 * bound * max(1.0, before[0].abs().max().item()))


LEAKS = [0.3, 0.5, 0.9, 0.99, 1.0]
division = pytest.mark.parametrize("tolerance", [1e-5, 1e-4, 1e-3], ids=str)
resets = pytest.mark.parametrize("reset", ["subtract", "none"])


@division
@resets
@pytest.mark.parametrize("leak", LEAKS)
def test_division_stays_within_its_tolerance(leak, reset, tolerance):
    x = inputs(90) - (0.3 if reset == "none" else 0.0)
    net, said = firing(chain(beta=leak, reset_mechanism=reset), x), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(net, x, "reverse", tolerance=tolerance, report=said)
    wanted = run(net, x)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads, tolerance, exact=lambda: truth(net, x))
    assert any(s.startswith("division" if leak > 0.3 or tolerance > 1e-5 else "replay") for s in said), said


@pytest.mark.parametrize("every", [None, 3])
def test_division_of_states_that_are_handed_in(every):
    x, state = inputs(60), starts()
    net, said = firing(Explicit(beta=0.9, learn_beta=True, learn_threshold=True), x, state=state), []
    wanted = run(net, x, state=state)
    got = run(net, x, "reverse", state=state, tolerance=1e-5, every=every, report=said)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads, exact=lambda: truth(net, x, state=state))
    assert any(s.startswith("division") for s in said)


@pytest.mark.parametrize("options", [dict(reset_mechanism="zero"), dict(reset_delay=False)], ids=str)
def test_what_division_cannot_solve_is_replayed(options):
    x = inputs(40)
    net, said = firing(chain(beta=0.9, **options), x), []
    got, wanted = run(net, x, "reverse", tolerance=1e-4, report=said), run(net, x)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads, exact=lambda: truth(net, x))
    assert any("replay" in s and "cannot" not in s for s in said), said


def test_division_keeps_fewer_states():
    from shared_core.memory import measure
    x = inputs(200, batch=16)
    net = firing(chain(beta=0.99), x[:50])
    kept = {tolerance: measure(lambda t=tolerance: unroll(net, x, tolerance=t)[1].sum().backward()).saved_bytes
            for tolerance in (None, 1e-3)}
    state = 16 * 17 * 4  # bytes: 14 kept states, against the first and the last one
    assert kept[None] - kept[1e-3] == pytest.approx(12 * state, abs=2 * state)


# ---- mutations: without the stored bits, and beyond the bound ----

def at_threshold(steps: int, make) -> torch.Tensor:
    """[T, 4, 12] with which a third of the potentials of a neuron lies exactly on the threshold, or one ulp above."""
    x, mem = torch.randn(steps, 4, 12) * 0.5 + 0.1, torch.zeros(4, 12)
    neuron = make(init_hidden=False)
    for t in range(steps):
        met = neuron.threshold - neuron(torch.zeros_like(mem), mem)[1]
        pick = torch.rand(4, 12)
        x[t] = torch.where(pick < 0.2, met, torch.where(pick < 0.33, torch.nextafter(met, met + 1), x[t] * 0.5))
        mem = neuron(x[t], mem)[1]
    return x


class Driven(nn.Module):
    """The first neuron gets its input as it is, so the test can drive it to its threshold."""

    def __init__(self, make):
        super().__init__()
        self.lif1, self.fc, self.lif2 = make(), nn.Linear(12, 5), make(output=True)

    def forward(self, x):
        return self.lif2(self.fc(self.lif1(x)))


def unclamped(self, after, x, fired, fired_before, params):
    """Leaky.before without the correction by the bits: the potential as the division rounds it."""
    reset = fired_before * params[1] if self.reset_mechanism == "subtract" else 0.0
    return ((after[0] + reset - x) / params[0],)


class _Asks:
    """What must not be done: a rebuilt neuron fires where its solved potential lies above the threshold."""

    def __init__(self, honest):
        self.honest, self.flips = honest, 0

    def apply(self, spec, backend, bits, states, x, *tensors):
        flat = self.honest.apply(spec, backend, bits, states, x, *tensors)
        if states is None:
            return flat
        threshold = tensors[len(spec.dynamics.states) + 1]
        fired = torch.stack([s[0] > threshold for s in states]).to(flat[0].dtype)
        self.flips += int((fired != flat[0]).sum())
        return flat[0] + (fired - flat[0]).detach(), *flat[1:]


def driven(reset: str):
    """(net, x, gradients of the plain loop, of division)"""
    torch.manual_seed(3)

    def make(**options):
        return lif(beta=0.9, reset_mechanism=reset, **options)

    x, net = at_threshold(100, make), Driven(make)
    with torch.no_grad():
        net.fc.bias.add_(0.0 if reset == "none" else 0.25)
    assert_fire(net, x)
    wanted, good = run(net, x).grads, run(net, x, "reverse", tolerance=1e-4).grads
    assert_gradients(good, wanted, 1e-4)
    return net, x, wanted


def test_asking_a_solved_potential_whether_it_fires_breaks_the_gradient(monkeypatch):
    net, x, wanted = driven("none")
    asks = _Asks(_tape._Rebuilt)
    monkeypatch.setattr(_tape, "_Rebuilt", asks)
    with pytest.warns(RuntimeWarning, match="puts the gradient in doubt"):  # with wrong spikes below, wrong inputs
        bad = run(net, x, "reverse", tolerance=1e-4).grads
    assert asks.flips > 20, "no potential flips: this case tests nothing"
    assert distance(bad["fc.weight"], wanted["fc.weight"]) > 1e-3, asks.flips


def test_asking_a_solved_potential_whether_it_was_reset_breaks_the_gradient(monkeypatch):
    """With 'subtract', the reset of a step is read off the potential before it: the bits have the last word there."""
    net, x, wanted = driven("subtract")
    monkeypatch.setattr(Leaky, "before", unclamped)
    bad = run(net, x, "reverse", tolerance=1e-4).grads
    assert distance(bad["x"], wanted["x"]) > 1e-3


@pytest.mark.parametrize("leak", [0.3, 0.5])
@resets
def test_division_beyond_its_bound_breaks_the_gradient(reset, leak, monkeypatch):
    """And it is said: the states that were kept show how far the division was off."""
    x = inputs(90) - (0.3 if reset == "none" else 0.0)
    net = firing(chain(beta=leak, reset_mechanism=reset), x)
    wanted = run(net, x)
    monkeypatch.setattr(_division, "steps_between", lambda tape, tolerance: 40)
    with pytest.warns(RuntimeWarning, match="solved for.*puts the gradient in doubt"):
        bad = run(net, x, "reverse", tolerance=1e-4)
    assert max(distance(bad.grads[n], wanted.grads[n]) for n in wanted.grads) > 1e-2


def test_a_dropped_carry_is_noticed(monkeypatch):
    """The comparisons of these tests can fail."""
    x = inputs(30)
    net = firing(chain(beta=0.9), x)
    honest = _unrolled._Backward.through

    def dropped(self, units, states, carry, *known):
        return honest(self, units, states, [None] * len(carry), *known)

    monkeypatch.setattr(_unrolled._Backward, "through", dropped)
    with pytest.raises(AssertionError, match="weight"):
        assert_gradients(run(net, x, "reverse").grads, run(net, x).grads)


def test_a_lost_bit_is_noticed(monkeypatch):
    """One spike of the first layer, flipped on the tape, is a wrong gradient."""
    x = inputs(30)
    net = firing(chain(beta=0.9), x)
    honest, once = Tape.giving, []

    def flipped(self, t):
        if t == 12 and not once:
            once.append(self.bits[12][0].bitwise_xor_(1))
        return honest(self, t)

    monkeypatch.setattr(Tape, "giving", flipped)
    with pytest.raises(AssertionError):
        assert_gradients(run(net, x, "reverse").grads, run(net, x).grads)
    assert once
