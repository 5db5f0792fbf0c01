"""Temporal columns (T-RevSNN): states and gradients against a plain loop written from the paper's Eq. 10, what is kept,
and what a user may do around it."""
import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shared_core import surrogate
from shared_core.errors import MemextError
from shared_core.memory import measure
from shared_core.reversible import _column_node
from shared_core.reversible._column_state import TurnedOn, kept_channels, packed, unpacked
from shared_core.reversible.columns import Columns, window

GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-10}  # what the states are allowed to be off (Columns, tolerance)
CHANNELS = (6, 8, 5)


class Stage(nn.Module):
    """As in the network: convolutions towards both neighbours, batch norm where they meet, one more layer."""

    def __init__(self, below, channels, above, dropout=0.0):
        super().__init__()
        self.down = nn.Conv2d(below, channels, 3, padding=1, bias=False)
        self.up = nn.Conv2d(above, channels, 1, bias=False) if above else None
        self.norm = nn.BatchNorm2d(channels)
        self.out = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, below, above):
        x = self.down(below)
        if above is not None:
            x = x + self.up(above)
        return self.out(self.dropout(self.norm(x).relu())) + 0.3


def make(steps=4, channels=CHANNELS, dropout=0.0, **options):
    def stage(t, i):
        above = channels[i + 1] if t and i + 1 < len(channels) else 0
        return Stage(channels[i - 1] if i else 3, channels[i], above, dropout)

    return Columns([[stage(t, i) for i in range(len(channels))] for t in range(steps)], channels, **options)


def images(steps=4, dtype=torch.float32, batch=3):
    return torch.randn(steps, batch, 3, 7, 5, dtype=dtype)


def fire(v):
    """The published neuron: 1 at 0.5 and above; derivative 1 from 0 to 1, both included."""
    inside = v.clamp(0, 1)
    return inside + ((v >= 0.5).to(v.dtype) - inside).detach()


def oracle(net, inputs, spike=fire):
    """Eq. 10, with the next stage as the only higher level, under Torch's autograd; the code's clamp of the decays."""
    decays = iter(net.decays)
    before = None
    for t, column in enumerate(net.stages):
        after = []
        for i, stage in enumerate(column):
            decay = next(decays)
            sign = torch.where(decay.detach() < 0, -1.0, 1.0).to(decay)
            decay = decay + (sign * decay.detach().abs().clamp_min(1e-3) - decay.detach())
            below = inputs[t] if i == 0 else spike(after[i - 1])
            above = spike(before[i + 1]) if t and i + 1 < len(column) else None
            update = stage(below, above)
            after.append(update if before is None else decay.view(1, -1, 1, 1) * before[i] + update)
        before = after
    return before


def gradients(net, run, x):
    """(states, gradients of every parameter and of the input) of a loss that weighs every state."""
    net.zero_grad()
    x = x.detach().clone().requires_grad_()
    states = run(x)
    generator = torch.Generator().manual_seed(7)
    sum((v * torch.randn(v.shape, generator=generator).to(v)).sum() for v in states).backward()
    found = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in net.named_parameters()}
    return [v.detach() for v in states], {**found, "x": x.grad}


def assert_equal_to_oracle(net, x, spike=fire, within=None):
    within = GRADIENT[x.dtype] if within is None else within
    twin = copy.deepcopy(net)
    states, wanted = gradients(twin, lambda x: oracle(twin, x, spike), x)
    ours, found = gradients(net, net, x)
    rates = [net.neuron.spike(v).mean().item() for v in ours]
    print("firing", [f"{r:.2f}" for r in rates])
    assert all(0.02 < r < 0.98 for r in rates), "nothing is tested where all or none fire"
    for a, b in zip(ours, states):
        assert torch.equal(a, b), "the same operations in the same order"
    # A gradient that is zero but for rounding (a weight whose effect the norm takes out) has no relative error.
    floor = 1e-6 * max(g.norm() for g in wanted.values())
    worst = {n: ((found[n] - g).norm() / g.norm().clamp_min(floor)).item() for n, g in wanted.items()}
    assert max(worst.values()) <= within, max(worst.items(), key=lambda item: item[1])
    buffers = dict(twin.named_buffers())
    assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers()), "running statistics move once"


# ---- the same network --------------------------------------------------------------------------------------------

def mixed(net):
    """Decays on both sides of every rule: growing, at rest, negative, small, zero."""
    with torch.no_grad():
        for decay in net.decays:
            decay.copy_(torch.tensor([1.3, 1.0, 0.5, -0.7, 0.01, 0.0, 1e-3, 0.2])[:len(decay)])
    return net


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_equals_plain_autograd(dtype, steps):
    assert_equal_to_oracle(make(steps).to(dtype), images(steps, dtype))


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("decay", [0.9, 0.1, -0.5, 1e-3, 0.0])
def test_equals_plain_autograd_at_any_decay(dtype, decay):
    assert_equal_to_oracle(make(5, decay=decay).to(dtype), images(5, dtype))


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
def test_equals_plain_autograd_with_channels_of_all_kinds(dtype):
    assert_equal_to_oracle(mixed(make(6)).to(dtype), images(6, dtype))


@pytest.mark.parametrize("chosen", [surrogate.atan(2.0), surrogate.rect(1.0), surrogate.sigmoid(4.0),
                                    surrogate.piecewise_leaky_relu(0.7, 0.1)], ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
def test_equals_plain_autograd_with_other_surrogates(chosen, dtype):
    assert_equal_to_oracle(make(5, surrogate=chosen, v_threshold=0.6).to(dtype), images(5, dtype),
                           spike=lambda v: surrogate.spike(v - 0.6, chosen, strict=False))


def test_plain_division_loses_everything_at_the_clamp():
    """As published: (v[t] - u[t]) / decay with |decay| = 1e-3, three times over, multiplies rounding by 1e9."""
    for tolerance, lost in ((math.inf, True), (None, False)):
        torch.manual_seed(0)
        net, x = make(decay=1e-3, tolerance=tolerance), images()
        twin = copy.deepcopy(net)
        _, wanted = gradients(twin, lambda x, twin=twin: oracle(twin, x), x)
        _, found = gradients(net, net, x)
        # decays.7 and 8 are stage 2's and 3's of the third column, whose states before it took two divisions
        apart = max(((found[n] - g).norm() / g.norm()).item() for n, g in wanted.items() if n.startswith("decays.")
                    and g.norm() > 0)
        assert (apart > 0.1) if lost else (apart <= 1e-5), (tolerance, apart)
        assert net.check_invertible(x) is not lost


def test_equals_plain_autograd_on_other_memory_layouts():
    net, x = make().to(memory_format=torch.channels_last), images(4, batch=6)
    assert_equal_to_oracle(net, x[:, ::2])
    net.zero_grad()
    net([part.contiguous(memory_format=torch.channels_last) for part in x])[0].sum().backward()


# ---- bits ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("chosen", [window(), surrogate.rect(0.8), surrogate.atan(2.0), surrogate.sparse_fast_sigmoid(
    25.0, 0.4), surrogate.piecewise_leaky_relu(0.7, 0.1)], ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
def test_a_state_that_is_nearly_right_is_put_on_the_right_side(chosen, dtype):
    """States on every edge, an ulp beside it and a little further off, each read with an error of up to 1e-5."""
    neuron = TurnedOn(0.5, chosen)
    edges = torch.tensor([-0.9, -0.2, -0.125, 0.0, 0.5, 0.9, 1.0, 1.125, 1.2], dtype=dtype)
    true = torch.cat([edges, *(torch.nextafter(edges, torch.full_like(edges, far)) for far in (-9.0, 9.0)),
                      edges - 3e-6, edges + 3e-6, torch.randn(4001, dtype=dtype)])
    read = (true.repeat(50) + torch.empty(50 * len(true), dtype=dtype).uniform_(-1e-5, 1e-5))
    true = true.repeat(50)
    odd = unpacked(packed(neuron.parity(true)), true)
    assert torch.equal(odd, neuron.parity(true))
    found = neuron.settle(read.clone(), odd)

    def both(v):
        v = v.detach().requires_grad_()
        s = neuron.spike(v)
        s.sum().backward()
        return s.detach(), v.grad

    (spikes, slopes), (wanted, wanted_slopes), (wrong, _) = both(found), both(true), both(read)
    assert 0.2 < wanted.mean() < 0.8
    assert not torch.equal(wrong, wanted), "the errors must be large enough to matter"
    assert torch.equal(spikes, wanted)
    # smooth surrogates: 1e-5 times their steepest slope; jumps: none is on the wrong side
    torch.testing.assert_close(slopes, wanted_slopes, rtol=0, atol=3e-4)
    assert (found - true).abs().max() < 3e-5


def test_without_the_bits_gradients_are_wrong(monkeypatch):
    """Stages whose updates lie on a coarse grid that contains the edges; solved states then lie beside the edges."""

    class Coarse(Stage):
        def forward(self, below, above):
            u = super().forward(below, above)
            return u + ((u * 8).round() / 8 - u).detach()

    def net():
        torch.manual_seed(3)
        stages = [[Coarse(3 if i == 0 else 6, 6, 6 if t and i == 0 else 0) for i in range(2)] for t in range(5)]
        found = Columns(stages, (6, 6), decay=1.0)
        with torch.no_grad():
            for decay in found.decays:
                decay.copy_(torch.tensor([1.0, 1.0, 0.5, 0.5, 0.6, 0.3]))
        return found

    def spike(v):  # v - 0.5 rounds: a state of -1e-9 counts as 0, and such states are frequent here
        return surrogate.spike(v - 0.5, window(), strict=False)

    x = images(5)
    assert_equal_to_oracle(net(), x, spike)
    monkeypatch.setattr(TurnedOn, "settle", lambda self, v, odd: v)
    with pytest.raises(AssertionError):
        assert_equal_to_oracle(net(), x, spike)


# ---- what is kept -------------------------------------------------------------------------------------------------

def test_which_channels_are_kept():
    """e = (e + unit) / |decay| by hand, unit 2^-23."""
    unit = 2.0**-23
    at = lambda steps, decay: kept_channels(torch.full((steps, 1), decay), 1e-5, unit)  # noqa: E731
    assert at(4, 0.5) == [[], [], []]                      # 2, 6, 14 units: 1.7e-6
    assert at(7, 0.5) == [[0], [], [], [], [], []]         # 126 units: 1.5e-5 after six divisions
    assert at(4, 1e-3) == [[0], [0], [0]]                  # 1000 units: 1.2e-4
    assert at(4, 0.15) == [[0], [], []]                    # 6.7, 51, 346 units: 4.1e-5
    assert at(60, 1.0) == [[]] * 59                        # 59 units: 7e-6
    assert at(3, 0.0) == [[0], [0]]
    both = kept_channels(torch.tensor([[0.5, 1e-3]] * 4), 1e-5, unit)
    assert both == [[1], [1], [1]]
    net = mixed(make(4))
    assert net.report()["kept share"] == sum(len(c) for s in net.plan() for c in s) / (3 * sum(CHANNELS))
    assert make(4).report()["kept share"] == 0.0 and make(4, decay=1e-3).report()["kept share"] == 1.0


def test_a_steep_surrogate_allows_smaller_errors():
    """The derivative of sigmoid(25) has slopes of 60 (0.096 times 25^2): one division errs by more than 1e-5 / 60."""
    def kept(chosen):
        return sum(len(channels) for stage in make(6, surrogate=chosen).plan() for channels in stage)

    assert kept(surrogate.sigmoid(1.0)) == 0 and kept(surrogate.sigmoid(25.0)) == 5 * sum(CHANNELS)


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.9])
def test_solved_states_are_within_the_bound(monkeypatch, decay):
    """The bound is for states of size 1: measured relative to the largest state."""
    net, x, true, found = make(8, decay=decay), images(8), [], []
    monkeypatch.setattr(TurnedOn, "parity", lambda self, v: (true.append(v.clone()), v >= 0.5)[1])
    monkeypatch.setattr(TurnedOn, "settle", lambda self, v, odd: (found.append(v), v)[1])
    sum(v.sum() for v in net(x)).backward()
    assert len(found) == len(true) > 0
    for a, b in zip(found, reversed(true)):
        kept = (a - b).abs().amax((0, 2, 3)) / b.abs().max()
        assert (kept <= 1e-5).all() or decay == 0.2  # channels that are kept are exact only after this point
    assert max((a - b).abs().max() for a, b in zip(found[:3], reversed(true))) < 1e-5


def saved(steps, size=16, **options):
    """Bytes kept by columns that share their modules, so that parameters do not grow with T."""
    torch.manual_seed(0)
    stages = [Stage(3, 8, 0), Stage(8, 8, 0)]
    channels = (8, 8)
    net = Columns([[_Lone(stages[0]), _Lone(stages[1])] for _ in range(steps)], channels, **options)
    x = torch.randn(2, 3, size, size)
    return measure(lambda: [v.sum() for v in net([x] * steps)], timeline=False).saved_bytes, net, x


class _Lone(nn.Module):
    """A stage that leaves out the stage above it."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, below, above):
        return self.stage(below, None)


def test_an_eighth_of_a_byte_per_state_and_column():
    elements = 2 * 2 * 8 * 16 * 16
    grown = (saved(6)[0] - saved(2)[0]) / 4
    decays = 2 * 8 * 4 * 3  # the clamped decays of two stages and what the clamp made of them, at most
    assert elements / 8 <= grown <= elements / 8 + decays
    # at the clamp every state is kept, and no bits beside it
    grown = (saved(6, decay=1e-3)[0] - saved(2, decay=1e-3)[0]) / 4
    assert 4 * elements <= grown <= 4 * elements + decays


def test_the_peak_does_not_grow_either():
    peaks = []
    for steps in (3, 7):  # from the third column on, states before and after a column are there at once
        _, net, x = saved(steps, size=32, decay=0.7)
        x.requires_grad_()
        peaks.append(measure(lambda net=net, x=x, steps=steps: sum(v.sum() for v in net([x] * steps)).backward(),
                             timeline=False).peak_bytes)
    elements = 2 * 2 * 8 * 32 * 32
    small = 4 * 2 * 8 * 8 * 4  # decays, their gradients and the clamp's
    assert (peaks[1] - peaks[0]) / 4 <= elements / 8 + small


def test_fake_tensors_say_the_same_as_real_ones():
    def step(net, x):
        return measure(lambda: sum(v.sum() for v in net([x] * 3)).backward(), timeline=False)

    _, net, x = saved(3)
    real = step(net, x)
    with FakeTensorMode():
        net = Columns([[_Lone(Stage(3, 8, 0)), _Lone(Stage(8, 8, 0))] for _ in range(3)], (8, 8))
        fake = step(net, torch.randn(2, 3, 16, 16))
    # Modules of its own in every column: more parameters' gradients. What is kept is the same; real runs also hold the
    # state of the random numbers for a moment (5 kB).
    parameters = sum(p.numel() for p in net.parameters()) * 4
    assert abs(fake.saved_bytes - real.saved_bytes) <= parameters
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, abs=parameters + 3 * 5056)


# ---- around it ----------------------------------------------------------------------------------------------------

def test_random_numbers_are_drawn_again():
    net, x = make(dropout=0.4), images()
    twin = copy.deepcopy(net)
    torch.manual_seed(5)
    _, wanted = gradients(twin, lambda x: oracle(twin, x), x)
    torch.manual_seed(5)
    _, found = gradients(net, net, x)
    after = torch.rand(1)
    torch.manual_seed(5)
    gradients(net, net.plain, x)
    assert torch.equal(after, torch.rand(1)), "the backward pass leaves the generator where it was"
    for n, g in wanted.items():
        torch.testing.assert_close(found[n], g, rtol=1e-4, atol=1e-5 * float(g.abs().max() + 1e-3))


def test_hooks_of_parameters_run_once_and_modules_may_be_shared():
    shared = nn.Conv2d(4, 4, 1)

    class Own(nn.Module):
        def __init__(self, below):
            super().__init__()
            self.first, self.shared = nn.Conv2d(below, 4, 1), shared

        def forward(self, below, above):
            return self.shared(self.first(below)) * 2

    torch.manual_seed(1)
    net = Columns([[Own(3), Own(4)] for _ in range(4)], (4, 4))
    net.stages[0][0].first.bias.requires_grad_(False)
    calls = []
    for n, p in net.named_parameters():
        if p.requires_grad:
            p.register_hook(lambda g, n=n: calls.append(n) or None)
    assert_equal_to_oracle(net, images())
    assert sorted(calls) == sorted(n for n, p in net.named_parameters() if p.requires_grad)
    assert net.stages[0][0].first.bias.grad is None and shared.weight.grad is not None


def test_one_input_for_several_columns():
    net, x = make(), images()[0]
    twin = copy.deepcopy(net)
    _, wanted = gradients(twin, lambda x: oracle(twin, [x] * 4), x)
    _, found = gradients(net, lambda x: net([x] * 4), x)
    torch.testing.assert_close(found["x"], wanted["x"], rtol=1e-4, atol=1e-5)


def test_backward_twice():
    net, x = make(), images()
    loss = sum(v.square().sum() for v in net(x))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in net.parameters()]
    loss.backward()
    for p, g in zip(net.parameters(), once):
        torch.testing.assert_close(p.grad, 2 * g)


def test_a_mode_changed_between_forward_and_backward():
    net, x = make(dropout=0.3), images()
    twin = copy.deepcopy(net)
    torch.manual_seed(5)
    sum(v.sum() for v in twin.plain(x)).backward()
    torch.manual_seed(5)
    loss = sum(v.sum() for v in net(x))
    net.eval()
    loss.backward()
    assert not net.training and not net.stages[0][0].norm.training
    wanted = dict(twin.named_parameters())
    for n, p in net.named_parameters():
        if wanted[n].grad is not None:
            torch.testing.assert_close(p.grad, wanted[n].grad, rtol=1e-4, atol=1e-3)


def test_without_gradients_nothing_is_kept_and_steps_may_come_one_by_one():
    net, x = make().eval(), images()
    with torch.no_grad():
        wanted = net(x)
        states = None
        for t in range(4):
            states = net.step(t, x[t], states)
    assert all(torch.equal(a, b) for a, b in zip(states, wanted))
    assert all(torch.equal(a.detach(), b) for a, b in zip(net(x), wanted))
    assert all(v.grad_fn is None for v in wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Stages compute in half precision, states stay float32: the same numbers as plain autograd under autocast."""
    net, x = make(), images()
    twin = copy.deepcopy(net)

    def under(run):
        def forward(x):
            with torch.autocast("cpu", dtype):  # as in a training step: backward is outside, and stages run again there
                return run(x)
        return forward

    (states, wanted), (ours, found) = gradients(twin, under(twin.plain), x), gradients(net, under(net), x)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(ours, states))
    assert all(v.dtype == torch.float32 for v in under(make(1))(images(1))), "the first column's, too"
    unit = torch.finfo(dtype).eps
    for n, g in wanted.items():  # sums of half-precision gradients, in another order
        assert (found[n] - g).norm() <= 4 * unit * g.norm() + 1e-6, n


def test_deepcopy_pickle_and_state_dict():
    net, x = make(), images()
    other = make()
    other.load_state_dict(net.state_dict())
    wanted = [v.detach() for v in copy.deepcopy(net)(x)]
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(a, b) for a, b in zip(twin(x), wanted))
    keys = set(net.state_dict())
    sum(v.sum() for v in net(x)).backward()
    assert set(net.state_dict()) == keys and all(type(p) is nn.Parameter for p in net.parameters())


def test_an_error_in_backward_leaves_the_parameters_in_place(monkeypatch):
    net, x = make(), images()
    before = [id(p) for p in net.parameters()]
    states = net(x)
    monkeypatch.setattr(_column_node._Backward, "before", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sum(v.sum() for v in states).backward()
    assert [id(p) for p in net.parameters()] == before


def test_check_invertible():
    class Counts(nn.Module):
        calls = 0

        def forward(self, below, above):
            Counts.calls += 1
            return below.sum(1, keepdim=True).expand(-1, 2, -1, -1) * Counts.calls

    net, x = make(), images()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    assert net.check_invertible(x) is True and make(dropout=0.5).check_invertible(x) is True
    assert net.train().check_invertible(x) and all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state) or True
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert Columns([[Counts()], [Counts()]], (2,)).check_invertible(x[:2]) is False


# ---- errors -------------------------------------------------------------------------------------------------------

def refused(part, call):
    with pytest.raises(MemextError, match=part):
        call()


def test_bad_arguments():
    stage = Stage(3, 4, 0)
    refused("same number", lambda: Columns([[stage], [stage, stage]], (4,)))
    refused("same number", lambda: Columns([], (4,)))
    refused("one number per stage", lambda: Columns([[stage]], (4, 4)))
    refused("clamp=0", lambda: Columns([[stage]], (4,), clamp=0))
    refused("tolerance=-1", lambda: Columns([[stage]], (4,), tolerance=-1))
    real = surrogate.opaque(torch.relu, name="r", alphabet="real")
    refused("0 or 1", lambda: Columns([[stage]], (4,), surrogate=real))
    net = make()
    refused("3 inputs for 4 columns", lambda: net(images(3)))
    refused("tensors", lambda: net([1, 2, 3, 4]))
    refused("column t=2 without states", lambda: net.step(2, images()[0]))


def test_shapes_that_change_between_columns():
    net, x = Columns([[Stage(3, 4, 0)], [Stage(3, 4, 0)]], (4,)), images(2)
    refused("same shape", lambda: net([x[0], x[1][..., :4]]))


def test_a_stage_may_hand_its_input_through():
    """The state is memory of its own all the same: changing it in place does not change the input."""
    class Through(nn.Module):
        def forward(self, below, above):
            return below

    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    before = x.detach().clone()
    state, = Columns([[Through()]], (3,))([x])
    assert state.data_ptr() != x.data_ptr()
    state.sum().backward()
    with torch.no_grad():
        state.zero_()
    assert torch.equal(x, before) and torch.equal(x.grad, torch.ones_like(x))


def test_what_is_changed_in_place_is_refused():
    net, x = make(), images()
    states = net(x)
    with torch.no_grad():
        states[1].add_(1)
    refused("in place", lambda: states[0].sum().backward())
    states = net(x)
    with torch.no_grad():
        net.stages[1][1].out.weight.mul_(2)
    refused("in place", lambda: states[0].sum().backward())
    net(x)[0].sum().backward()


def test_double_backward_is_refused():
    net, x = make(), images().requires_grad_()
    loss = net(x)[0].sum()
    refused("double backward", lambda: torch.autograd.grad(loss, x, create_graph=True))
    twice = make(reversible=False)
    g, = torch.autograd.grad(twice(x)[0].square().sum(), x, create_graph=True)
    g.square().sum().backward()


def test_a_tensor_that_is_not_found_is_refused():
    held = [torch.ones(1, requires_grad=True)]

    class Hidden(nn.Module):
        def forward(self, below, above):
            return below.mean(1, keepdim=True) * held[0]

    net = Columns([[Hidden()], [Hidden()]], (1,))
    with torch.no_grad(), warnings.catch_warnings():
        net(images(2))
    refused("no parameter of the stage", lambda: net(images(2).requires_grad_())[0].sum().backward())
