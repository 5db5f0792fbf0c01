"""Dynamics.before: a step solved for the state it started from; and how far that may be trusted."""
import pytest
import torch

from shared_core import _tape, surrogate
from shared_core.dynamics import IF, KLIF, LIF, Leaky, ParametricLIF, Synaptic
from shared_core.spikes import pack
from shared_core.temporal import _division

N = 4096
CASES = {
    "IF": (IF(1.0, None), ()),
    "LIF": (LIF(0.8, None, tau=1.7), ()),
    "LIF, input not decayed": (LIF(0.8, None, tau=3.0, decay_input=False), ()),
    "PLIF": (ParametricLIF(0.4, None), (torch.tensor(0.3),)),
    "PLIF, input not decayed": (ParametricLIF(0.8, None, decay_input=False), (torch.tensor(0.3),)),
    "Leaky subtract": (Leaky("subtract"), (torch.tensor(0.9), torch.tensor(0.7), torch.tensor(1.0))),
    "Leaky none": (Leaky("none", False), (torch.rand(N) * 0.4 + 0.5, torch.tensor(0.7), torch.tensor(2.0))),
}


def run(dynamics, params, dtype, steps=6):
    """Inputs, states before and after each step, spikes; spikes[0] are those the first state would have sent."""
    torch.manual_seed(0)
    params = tuple(p.to(dtype) for p in params)
    theta = params[1] if dynamics.strict else dynamics.v_th
    fire = lambda z: (z > 0 if dynamics.strict else z >= 0).to(dtype)  # noqa: E731
    state = (torch.randn(N, dtype=dtype),)
    x, states, spikes = torch.randn(steps, N, dtype=dtype), [state], [fire(state[0] - theta)]
    for x_t in x:
        s, state = dynamics.step(x_t, state, params, fire)
        states.append(state)
        spikes.append((s != 0).to(dtype))
    rate = float(torch.stack(spikes[1:]).mean())
    assert 0.05 < rate < 0.7, rate
    return x, states, spikes, params


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_state_before_is_found(name, dtype):
    dynamics, given = CASES[name]
    x, states, spikes, params = run(dynamics, given, dtype)
    decay = dynamics.decay(params)
    grown = len(x) if decay == 1 else (decay ** -len(x) - 1) / (1 - decay)
    bound = 8 * torch.finfo(dtype).eps * grown  # _division's e(k); states and inputs reach several thresholds
    assert dynamics.rewinds
    state = states[-1]
    for t in reversed(range(len(x))):
        state = dynamics.before(state, x[t], spikes[t + 1], spikes[t], params)
        assert float((state[0] - states[t][0]).abs().max()) < bound, t
        if dynamics.strict and dynamics.reset_mechanism == "subtract":
            assert torch.equal(state[0] > params[1], spikes[t] > 0)  # R is read off the state: it must not flip


@pytest.mark.parametrize("dynamics", [IF(1.0, 0.0), LIF(), ParametricLIF(), KLIF(v_reset=None), Leaky("zero"),
                                      Leaky("subtract", False), Leaky("zero", False), Synaptic()], ids=repr)
def test_what_cannot_be_solved_says_so(dynamics):
    assert not dynamics.rewinds


def test_decay_is_the_smallest_of_a_layer():
    assert LIF(tau=4.0).decay(()) == 0.75 and IF().decay(()) == 1.0
    assert ParametricLIF().decay((torch.tensor(0.25),)) == 0.75
    assert Leaky().decay((torch.tensor([0.5, 0.875]), None, None)) == 0.5


def test_steps_between_kept_states():
    """Errors measured over the steps that the bound allows stay within it, and the bound is not idle."""
    allowed, unit = 1e-5, torch.finfo(torch.float32).eps
    for beta, least in ((0.5, 4), (0.9, 10), (0.99, 30)):
        k = _division._steps(beta, allowed, unit)
        assert k >= least
        params = tuple(torch.tensor(v) for v in (beta, 1.0, 1.0))
        x, states, spikes, params = run(Leaky("subtract"), params, torch.float32, steps=k)
        state = states[-1]
        for t in reversed(range(k)):
            state = Leaky("subtract").before(state, x[t], spikes[t + 1], spikes[t], params)
        assert float((state[0] - states[0][0]).abs().max()) < 3 * allowed  # states reach 3 thresholds
    assert _division._steps(0.0, allowed, unit) == 0 and _division._steps(0.25, allowed, unit) == 0


def test_steep_surrogates_leave_no_room():
    assert 1.9 < _division.steepest(surrogate.get("atan", alpha=2.0)) < 2.1
    assert 45 < _division.steepest(surrogate.get("fast_sigmoid", slope=25.0)) < 51
    assert _division.steepest(surrogate.rectangle()) > 500  # it jumps


def test_spikes_given_to_a_step_decide_over_its_potential():
    """A rebuilt step whose bits say otherwise than its potential: spikes and states follow the bits."""
    dynamics, x = LIF(1.0, None, tau=2.0), torch.full((1, 16), 1.9, requires_grad=True)
    tape, state = _tape.Tape(), torch.full((16,), 0.5, requires_grad=True)
    tape.bits = [[pack(torch.ones(1, 16))]]  # h = 1.2 fires anyway; and one below the threshold that is said to fire
    low = torch.full((1, 16), 1.0, requires_grad=True)
    for value, h in ((x, 1.2), (low, 0.75)):
        with tape.giving(0):
            out = tape.step(dynamics, surrogate.atan(), None, False, False, 1, value, (state,), ())
        assert out.spikes.eq(1).all() and torch.allclose(out.final[0], torch.full((16,), h - 1.0))
    before = torch.zeros(16).requires_grad_()
    after = (out.final[0].detach().requires_grad_(),)
    solved = _tape.Solved()
    tape.bits.append(tape.bits[0])
    with tape.solving(1, solved):
        again = tape.step(dynamics, surrogate.atan(), None, False, False, 1, low, after, ())
    assert torch.allclose(solved.before[id(after[0])], state) and torch.equal(again.final[0], after[0])
    assert before.grad is None
