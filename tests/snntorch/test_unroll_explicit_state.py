"""unroll with step functions that are handed the states of their neurons and hand them back, snnTorch's commonest way
of writing; and the methods that leave a part of the gradient out (skip, online), against loops that say which."""
from __future__ import annotations

import functools

import pytest
import snntorch as snn
import torch
from temporal_nets import (
    DOUBLE,
    LEAKS,
    RESETS,
    Explicit,
    assert_gradients,
    assert_moves,
    assert_values,
    at_rest,
    chain,
    firing,
    inputs,
    keeps_dtype,
    lif,
    neurons,
    plain,
    run,
    starts,
    truth,
    weighted,
)
from torch import nn

from shared_core.errors import MemextError
from shared_core.temporal import unroll

resets = pytest.mark.parametrize("reset", RESETS)
methods = pytest.mark.parametrize("method", ["checkpoint", "reverse"])


# ---- values and gradients ----

@resets
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "same-step"])
def test_every_reset_and_leak(reset, delay):
    for leak in LEAKS:
        x, state = inputs(15), starts()
        net = firing(Explicit(beta=leak, reset_mechanism=reset, reset_delay=delay, learn_threshold=True), x,
                     state=state)
        wanted = run(net, x, state=state)
        assert_moves(wanted)
        for method, every in (("store", None), ("checkpoint", None), ("reverse", None), ("reverse", 1)):
            got = run(net, x, method, state=state, every=every)
            assert_values(got, wanted)
            assert_gradients(got.grads, wanted.grads, exact=lambda: truth(net, x, state=state))  # noqa: B023


@methods
@resets
def test_float64(reset, method):
    x, state = inputs(40, dtype=torch.float64), tuple(s.double() for s in starts())
    net = Explicit(beta=0.85, learn_beta=True, learn_threshold=True, reset_mechanism=reset, spike_grad=keeps_dtype)
    firing(net.double(), x, state=state)
    wanted, got = run(net, x, state=state), run(net, x, method, state=state)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads, DOUBLE)


@pytest.mark.slow
@methods
@resets
def test_a_thousand_steps(reset, method):
    x, state = inputs(1000, batch=4) - 0.3, starts(batch=4)
    net = firing(Explicit(beta=0.95, learn_beta=True, reset_mechanism=reset), x, state=state)
    wanted, got = run(net, x, state=state), run(net, x, method, state=state)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads, exact=lambda: truth(net, x, state=state))


@methods
@pytest.mark.parametrize("which", ["outputs", "final states", "one final state"])
def test_gradients_of_first_and_last_states(which, method):
    x, state = inputs(9), starts()
    net = firing(Explicit(beta=0.8), x, state=state)
    loss = {"outputs": lambda out, final: weighted(out), "final states": lambda out, final: weighted(final),
            "one final state": lambda out, final: weighted(final[:1])}[which]
    wanted, got = (run(net, x, how, state=state, loss=loss) for how in (None, method))
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads)
    assert got.grads["state0"].abs().max() > 0


@methods
def test_windows_chained_by_their_states_are_one_sequence(method):
    x, state = inputs(20), starts()
    net = firing(Explicit(beta=0.8), x, state=state)
    whole = run(net, x, state=state, loss=lambda out, final: weighted(out))
    net.zero_grad()
    parts, now = [], state
    for part in (x[:6], x[6:7], x[7:]):
        out, now = unroll(net.step, part, method, state=now)
        parts.append(out)
    joined = [torch.cat(p) for p in zip(*parts)]
    assert all(torch.equal(a, b) for a, b in zip((*joined, *now), (*whole.outputs, *whole.final)))
    weighted(joined).backward()
    assert_gradients({n: p.grad for n, p in net.named_parameters()},
                     {n: whole.grads[n] for n, _ in net.named_parameters()})


@methods
def test_static_and_computed_input(method):
    state = starts()
    image = inputs(1)[0] + 0.3
    net = firing(Explicit(beta=0.8), image, state=state, num_steps=13)
    for x in (image, lambda t: image * (1 + 0.1 * t)):
        wanted, got = (run(net, x, how, state=state, num_steps=13) for how in (None, method))
        assert_values(got, wanted)
        assert_gradients(got.grads, wanted.grads)


# ---- the ways to write a step ----

SCALE = nn.Parameter(torch.tensor(1.1))
CELL = lif(init_hidden=False)


def step_over_globals(x, mem1, mem2):
    spk1, mem1 = CELL(GLOBAL["fc1"](x) * SCALE, mem1)
    spk2, mem2 = GLOBAL["lif2"](GLOBAL["fc2"](spk1), mem2)
    return (spk2, mem2), (mem1, mem2)


GLOBAL: dict[str, nn.Module] = {}


class Trainer:
    """No Module: holds the net and a bare parameter."""

    def __init__(self, net):
        self.net, self.gain = net, nn.Parameter(torch.tensor(1.2))

    def step(self, x, mem1, mem2):
        return self.net.step(x * self.gain, mem1, mem2)


def over_self(net):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, state, how):
            def step(x, mem1, mem2):
                spk1, mem1 = self.inner.lif1(self.inner.fc1(x), mem1)
                spk2, mem2 = self.inner.lif2(self.inner.fc2(spk1), mem2)
                return (spk2, mem2), (mem1, mem2)
            return through(step, x, state, how)
    outer = Outer()
    return outer.forward, list(outer.parameters())


def through(step, x, state, how):
    return plain(step, x, state) if how is None else unroll(step, x, how, state=state)


def over_locals(net):
    fc1, lif1, rest, gain = net.fc1, net.lif1, [net.fc2, net.lif2], nn.Parameter(torch.tensor(0.9))

    def second(spk, mem):
        return rest[1](rest[0](spk), mem)

    def step(x, mem1, mem2):
        spk1, mem1 = lif1(fc1(x) * gain, mem1)
        spk2, mem2 = second(spk1, mem2)
        return (spk2, mem2), (mem1, mem2)
    return functools.partial(through, step), [*net.parameters(), gain]


def over_globals(net):
    GLOBAL.update(fc1=net.fc1, fc2=net.fc2, lif2=net.lif2)
    CELL.threshold.copy_(net.lif1.threshold)
    return functools.partial(through, step_over_globals), [*net.fc1.parameters(), *net.fc2.parameters(), SCALE]


def over_partial(net):
    def general(x, mem1, mem2, model, gain):
        return model.step(gain[0] * x, mem1, mem2)
    gain = [nn.Parameter(torch.tensor(1.1))]
    return functools.partial(through, functools.partial(general, model=net, gain=gain)), [*net.parameters(), *gain]


def over_defaults(net):
    def step(x, mem1, mem2, model=net):
        return model.step(x, mem1, mem2)
    return functools.partial(through, step), list(net.parameters())


def over_lambda(net):
    return functools.partial(through, lambda x, *mems: net.step(x, *mems)), list(net.parameters())


def over_method(net):
    return functools.partial(through, net.step), list(net.parameters())


def over_object(net):
    trainer = Trainer(net)
    return functools.partial(through, trainer.step), [*net.parameters(), trainer.gain]


@methods
@pytest.mark.parametrize("style", [over_self, over_locals, over_globals, over_partial, over_defaults, over_lambda,
                                   over_method, over_object], ids=lambda f: f.__name__)
def test_styles(style, method):
    x, state = inputs(11), starts()
    net = firing(Explicit(beta=0.8), x, state=state)
    call, parameters = style(net)
    found = []
    for how in (None, method):
        out, final = call(x, state, how)
        grads = torch.autograd.grad(weighted(out, final), parameters)
        found.append((*out, *final, dict(enumerate(grads))))
    assert all(torch.equal(a, b) for a, b in zip(found[0][:-1], found[1][:-1]))
    assert_gradients(found[1][-1], found[0][-1])
    assert all(g.abs().max() > 0 for g in found[0][-1].values())


class Hidden:
    """Keeps a parameter where nobody looks."""

    __slots__ = ("gain",)


def test_a_parameter_that_cannot_be_found_is_an_error():
    hidden = Hidden()
    hidden.gain = nn.Parameter(torch.tensor(1.1))
    net = Explicit()
    for method in ("checkpoint", "reverse"):
        out, _ = unroll(lambda x, *mems: net.step(x * hidden.gain, *mems), inputs(4), method, state=starts())
        with pytest.raises(MemextError, match=r"was not found.*make it a parameter"):
            weighted(out).backward()


@methods
def test_states_in_structures(method):
    """Nested tuples and dicts of states, outputs as a dict; Synaptic, whose step returns three things."""
    fc, syn = nn.Linear(6, 5), snn.Synaptic(alpha=0.5, beta=0.8, threshold=0.5, learn_alpha=True)
    fc2, alpha = nn.Linear(5, 5), snn.Alpha(alpha=0.8, beta=0.6, threshold=0.2)
    x = inputs(12)

    def step(x, first, second):
        spk, s, m = syn(fc(x), *first)
        out, exc, inh, mem = alpha(fc2(spk), second["exc"], second["inh"], second["mem"])
        return {"spk": out, "first": spk, "mem": mem}, ((s, m), {"exc": exc, "inh": inh, "mem": mem})

    state = (tuple(starts(sizes=(5, 5))), dict(zip(("exc", "inh", "mem"), starts(sizes=(5, 5, 5), scale=0.1))))
    parameters = [*fc.parameters(), *fc2.parameters(), *syn.parameters()]
    found = []
    for how in (None, method):
        if how is None:
            rows, now = [], state
            for x_t in x:
                out, now = step(x_t, *now)
                rows.append(out)
            out, final = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}, now
        else:
            out, final = unroll(step, x, how, state=state)
        flat = [*(out[k] for k in ("spk", "first", "mem")), *final[0], *(final[1][k] for k in ("exc", "inh", "mem"))]
        found.append((flat, dict(enumerate(torch.autograd.grad(weighted(flat), parameters)))))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0]))
    assert_gradients(found[1][1], found[0][1])
    for spikes in found[0][0][:2]:
        assert 0.05 < spikes.mean() < 0.6


@methods
def test_a_step_with_both_kinds_of_state(method):
    """One neuron holds its state, the other is handed it."""
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(6, 12), lif(beta=0.8)
            self.fc2, self.lif2 = nn.Linear(12, 5), lif(beta=0.7, init_hidden=False)

        def step(self, x, mem):
            spk, mem = self.lif2(self.fc2(self.lif1(self.fc1(x))), mem)
            return (spk, mem), (mem,)

    x, state = inputs(10), starts(sizes=(5,))
    net = firing(Both(), x, state=state)
    wanted, got = (run(net, x, how, state=state) for how in (None, method))
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads)


@methods
def test_modules_are_untouched(method):
    """snnTorch's neurons keep the last state they computed, also where they are handed it."""
    x, state = inputs(9), starts()
    net = firing(Explicit(beta=0.8), x, state=state)
    plain(net.step, x[:1], state)
    (out, final) = unroll(net.step, x, method, state=state)
    before = [(type(m), sorted(vars(m)), {n: id(b) for n, b in m._buffers.items()}) for m in net.modules()]
    weighted(out, final).backward()
    assert [(type(m), sorted(vars(m)), {n: id(b) for n, b in m._buffers.items()}) for m in net.modules()] == before
    assert type(net.lif1) is snn.Leaky
    assert net.lif1.mem.grad_fn is None, "the neuron's attribute keeps a graph alive"


# ---- skip: the steps with the fewest spikes get no backward ----

class Skip(torch.autograd.Function):
    """new, as a function of old: its gradient is handed straight to old."""

    @staticmethod
    def forward(ctx, old, new):
        return new.clone()

    @staticmethod
    def backward(ctx, g):
        return g, None


def skipping(step, x, state, skipped):
    """The plain loop, in which skipped steps pass the gradient of the state straight over themselves."""
    seen = []
    for t, x_t in enumerate(x):
        if t in skipped:
            with torch.no_grad():
                out, after = step(x_t, *state)
            state = tuple(Skip.apply(old, new) for old, new in zip(state, after))
        else:
            out, state = step(x_t, *state)
        seen.append(out)
    return tuple(torch.stack(parts) for parts in zip(*seen)), state


def activity(net, x, state) -> list[float]:
    """Spikes of all neurons in each step."""
    seen = []
    hooks = [n.register_forward_hook(lambda m, a, out: seen.append(out[0].sum().item())) for n in neurons(net)]
    with torch.no_grad():
        plain(net.step, x, state)
    for hook in hooks:
        hook.remove()
    return [a + b for a, b in zip(seen[::2], seen[1::2])]


@pytest.mark.parametrize("skip", [0.0, 0.1, 0.5, 0.9])
def test_skip(skip):
    x, state = inputs(16), starts()
    x[3], x[9] = -0.5, -0.5  # two quiet steps
    net = firing(Explicit(beta=0.8, learn_threshold=True), x, state=state)
    spikes = activity(net, x, state)
    order = sorted(range(16), key=lambda t: (spikes[t], t))  # of equal ones, the later ones stay
    skipped = order[:int(skip * 16)]
    assert len(set(spikes)) > 4
    leaves = {"x": x.requires_grad_(), **{f"state{i}": s.requires_grad_() for i, s in enumerate(state)},
              **dict(net.named_parameters())}

    def gradients(out, final):
        return dict(zip(leaves, torch.autograd.grad(weighted(out, final), list(leaves.values()))))

    def row(out, final):
        return [*(o.detach() for o in out), *(s.detach() for s in final)]

    out, final = skipping(net.step, x, state, skipped)
    values, wanted = row(out, final), gradients(out, final)
    for every in (None, 1, 5, 16):
        out, final = unroll(net.step, x, "checkpoint", state=state, skip=skip, every=every)
        assert all(torch.equal(a, b) for a, b in zip(row(out, final), values))
        got = gradients(out, final)
        assert_gradients(got, wanted)
        assert [t for t in range(16) if got["x"][t].abs().max() == 0] == sorted(skipped)
    plainly = gradients(*plain(net.step, x, state))
    if skip:
        assert (plainly["fc1.weight"] - wanted["fc1.weight"]).norm() > 0.01 * plainly["fc1.weight"].norm()
    else:
        assert_gradients(got, plainly)


def test_skip_with_hidden_states_leaves_the_values():
    x = inputs(14)
    net = firing(chain(beta=0.8), x)
    wanted, got = run(net, x), run(net, x, "checkpoint", skip=0.5)
    assert_values(got, wanted)
    assert int((got.grads["x"].abs().amax((1, 2)) == 0).sum()) == 7


# ---- online: no gradient of the carried state ----

def detached(step, x, state):
    seen = []
    for x_t in x:
        out, state = step(x_t, *(s.detach() for s in state))
        seen.append(out)
    return tuple(torch.stack(parts) for parts in zip(*seen)), state


@resets
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "same-step"])
def test_online_is_autograd_with_detached_states(reset, delay):
    x, state = inputs(15), starts()
    net = firing(Explicit(beta=0.8, learn_beta=True, learn_threshold=True, reset_mechanism=reset, reset_delay=delay),
                 x, state=state)
    leaf, parameters = x.clone().requires_grad_(), list(net.parameters())
    out, final = detached(net.step, leaf, state)
    wanted = torch.autograd.grad(weighted(out), [leaf, *parameters])
    for every in (None, 1, 4):
        got, states = unroll(net.step, leaf, "online", state=state, every=every)
        assert all(torch.equal(a, b) for a, b in zip((*got, *states), (*out, *final)))
        grads = torch.autograd.grad(weighted(got), [leaf, *parameters])
        assert all(torch.equal(a, b) for a, b in zip(grads[:1], wanted))  # one step's: the same operations
        assert_gradients(dict(enumerate(grads)), dict(enumerate(wanted)))
    full = torch.autograd.grad(weighted(plain(net.step, leaf, state)[0]), parameters)
    assert (full[0] - wanted[1]).norm() > 0.05 * full[0].norm(), "no gradient flows through time here"


def test_online_with_hidden_states_and_chosen_steps():
    x = inputs(13)
    net = firing(chain(beta=0.8, learn_beta=True), x)
    for steps in (None, [0], [12], [3, 4, 9]):
        leaf = x.clone().requires_grad_()

        def cut(t):
            for n in neurons(net):
                n.mem = n.mem.detach()

        out, _ = plain(at_rest(net), leaf, between=cut)
        chosen = list(range(13)) if steps is None else steps
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(out[0].shape, generator=generator)
        loss = lambda o, w=weight, c=chosen: (w * o[0] + w * o[1])[c].sum()  # noqa: E731
        wanted = torch.autograd.grad(loss(out), [leaf, *net.parameters()])
        got = unroll(at_rest(net), leaf, "online", steps=steps)
        # what the loss asks of other steps is left out, too
        asked = loss(got) if steps is None else loss(got, c=list(range(13)))
        grads = torch.autograd.grad(asked, [leaf, *net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(got, out))
        assert_gradients(dict(enumerate(grads)), dict(enumerate(wanted)))
