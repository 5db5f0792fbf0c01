"""snntorch_memext.backprop against snntorch.backprop, where that one works, and against loops where it does not; SLTT
and SLTT-K against autograd with detached states."""
from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import SpikingNeuron, utils
from temporal_nets import (
    RESETS,
    assert_gradients,
    assert_values,
    at_rest,
    chain,
    distance,
    firing,
    inputs,
    lif,
    neurons,
    plain,
    run,
)
from torch import nn

from shared_core.errors import MemextError
from shared_core.memory import measure
from shared_core.temporal import online_train_step
from snntorch_memext import backprop

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop as theirs

SAME = 1e-5  # parameters after an epoch of a few updates: gradients add up in another order, 1e-7 each

methods = pytest.mark.parametrize("method", ["store", "checkpoint", "reverse"])


def batches(count=3, steps=12, static=False, time_first=True, targets=None):
    """A dataloader: (data, targets) pairs."""
    found = []
    for i in range(count):
        x = inputs(steps + i, batch=4)[:steps]
        data = x[0] + 0.3 if static else x if time_first else x.transpose(0, 1)
        found.append((data, torch.tensor([0, 3, 1, 4]) if targets is None else targets(steps)))
    return found


def trained(epoch, net, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), epochs=2):
    """(losses, net) after two epochs of a copy of the net."""
    SpikingNeuron.instances.clear()
    net = at_rest(copy.deepcopy(net))
    SpikingNeuron.instances.extend(neurons(net))  # a copy is not in the framework's list
    made = optimizer(net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [epoch(net, made) for _ in range(epochs)]
    return torch.stack([torch.as_tensor(loss).detach().reshape(()) for loss in losses]), net


def assert_same_training(got, wanted, start):
    assert (got[0] - wanted[0]).abs().max() <= SAME * wanted[0].abs().max()
    for (name, p), q, first in zip(got[1].named_parameters(), wanted[1].parameters(), start.parameters()):
        assert distance(p.detach(), q.detach()) <= SAME, (name, distance(p.detach(), q.detach()))
        assert not torch.equal(q, first), f"{name} was not trained"


def fires(net, loader, **options):
    firing(net, loader[0][0], **options)
    return at_rest(net)


# ---- against the framework's own ----

CRITERIA = {
    "ce_rate": SF.ce_rate_loss, "ce_count": SF.ce_count_loss, "ce_max_membrane": SF.ce_max_membrane_loss,
    "mse_count": lambda: SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2),
    "mse_membrane": lambda: SF.mse_membrane_loss(on_target=0.9, off_target=0.1),
}


@methods
@pytest.mark.parametrize("criterion", CRITERIA)
def test_bptt(criterion, method):
    loader = batches()
    net = fires(chain(beta=0.8, learn_beta=True), loader)
    loss = CRITERIA[criterion]()
    wanted = trained(lambda net, o: theirs.BPTT(net, loader, o, loss), net)
    got = trained(lambda net, o: backprop.BPTT(net, loader, o, loss, method=method), net)
    assert_same_training(got, wanted, net)


@methods
@pytest.mark.parametrize("reset", RESETS)
def test_bptt_of_static_input_with_regularization(reset, method):
    loader = batches(static=True)
    net = fires(chain(beta=0.8, reset_mechanism=reset), loader, num_steps=11)
    loss, reg = SF.mse_count_loss(), SF.l1_rate_sparsity(Lambda=0.01)
    options = dict(num_steps=11, time_var=False, regularization=reg)
    wanted = trained(lambda net, o: theirs.BPTT(net, loader, o, loss, **options), net)
    got = trained(lambda net, o: backprop.BPTT(net, loader, o, loss, method=method, **options), net)
    assert_same_training(got, wanted, net)
    without = trained(lambda net, o: backprop.BPTT(net, loader, o, loss, num_steps=11, time_var=False), net)
    assert (without[0] != got[0]).all()


@methods
@pytest.mark.parametrize("k", [1, 4, 12])
def test_tbptt_of_static_input(k, method):
    loader = batches(static=True)
    net = fires(chain(beta=0.8), loader, num_steps=12)
    loss = SF.ce_rate_loss()
    options = dict(num_steps=12, time_var=False, K=k)
    wanted = trained(lambda net, o: theirs.TBPTT(net, loader, o, loss, **options), net)
    got = trained(lambda net, o: backprop.TBPTT(net, loader, o, loss, method=method, **options), net)
    assert_same_training(got, wanted, net)


def test_tbptt_with_a_shorter_last_part():
    """Its share of the reported loss is the framework's, too."""
    loader = batches(static=True)
    net = fires(chain(beta=0.8), loader, num_steps=13)
    options = dict(num_steps=13, time_var=False, K=5)
    wanted = trained(lambda net, o: theirs.TBPTT(net, loader, o, SF.ce_rate_loss(), **options), net)
    got = trained(lambda net, o: backprop.TBPTT(net, loader, o, SF.ce_rate_loss(), **options), net)
    assert_same_training(got, wanted, net)


def test_time_second():
    loader = batches(time_first=False)
    net = fires(chain(beta=0.8), batches())
    options = dict(time_first=False)
    wanted = trained(lambda net, o: theirs.BPTT(net, loader, o, SF.ce_rate_loss(), **options), net)
    got = trained(lambda net, o: backprop.BPTT(net, loader, o, SF.ce_rate_loss(), **options), net)
    assert_same_training(got, wanted, net)


def test_targets_that_vary_with_time():
    """One batch: the framework's own takes the second one's targets from behind their end."""
    loader = batches(1, targets=lambda steps: torch.arange(steps) % 5)
    net = fires(chain(beta=0.8), loader)
    loss = SF.mse_membrane_loss(time_var_targets=True)
    wanted = trained(lambda net, o: theirs.BPTT(net, loader, o, loss), net)
    got = trained(lambda net, o: backprop.BPTT(net, loader, o, loss), net)
    assert_same_training(got, wanted, net)


def test_synaptic_returns_three_things():
    def make(**o):
        return snn.Synaptic(alpha=0.6, beta=0.8, threshold=0.6, init_hidden=True, **o)

    loader = batches()
    net = fires(chain(make), loader)
    wanted = trained(lambda net, o: theirs.BPTT(net, loader, o, SF.mse_membrane_loss()), net)
    got = trained(lambda net, o: backprop.BPTT(net, loader, o, SF.mse_membrane_loss()), net)
    assert_same_training(got, wanted, net)


# ---- where the framework's own fails ----

def windows(net, loader, optimizer, loss, k):
    """TBPTT, written out: returns the mean over batches of what each part's loss adds."""
    total = 0.0
    for x, targets in loader:
        at_rest(net)
        for part in x.split(k):
            out, _ = plain(net, part)
            value = loss(out[0], targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            for n in neurons(net):
                for name in n._buffers:
                    if name in n._non_persistent_buffers_set:
                        setattr(n, name, getattr(n, name).detach())
            total = total + value.detach() * k / len(x)
    return total / len(loader)


@methods
@pytest.mark.parametrize("k", [1, 3, 12])
def test_tbptt_of_varying_input(k, method):
    loader = batches()
    net = fires(chain(beta=0.8, learn_beta=True), loader)
    loss = SF.ce_rate_loss()
    if k == 3:
        with pytest.raises(UnboundLocalError):
            trained(lambda net, o: theirs.TBPTT(net, loader, o, loss, K=k), net)
    wanted = trained(lambda net, o: windows(net, loader, o, loss, k), net)
    got = trained(lambda net, o: backprop.TBPTT(net, loader, o, loss, K=k, method=method), net)
    assert_same_training(got, wanted, net)


def test_two_classes_of_neurons_and_nested_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.Sequential(lif(beta=0.8)), nn.Linear(8, 8),
                                      snn.Synaptic(alpha=0.5, beta=0.7, threshold=0.4, init_hidden=True))
            self.head = nn.Sequential(nn.Linear(8, 5), lif(beta=0.9, threshold=0.4, output=True))

        def forward(self, x):
            return self.head(self.body(x))

    loader = batches()
    torch.manual_seed(2)
    net = fires(Net(), loader)
    loss = SF.ce_rate_loss()
    wanted = trained(lambda net, o: windows(net, loader, o, loss, 4), net)
    got = trained(lambda net, o: backprop.TBPTT(net, loader, o, loss, K=4), net)
    assert_same_training(got, wanted, net)


def test_another_net_keeps_its_states():
    """snntorch.utils.reset clears the neurons of the whole process."""
    other = lif()
    other(torch.ones(2, 3))
    mem = other.mem.clone()
    net, loader = chain(), batches(1)
    backprop.BPTT(net, loader, torch.optim.SGD(net.parameters(), lr=0.1), SF.ce_rate_loss())
    assert torch.equal(other.mem, mem) and mem.abs().max() > 0
    utils.reset(net)
    assert not torch.equal(other.mem, mem)


BAD = {
    "num_steps with time_var": (dict(num_steps=5), "num_steps=5 and time_var=True"),
    "no num_steps": (dict(time_var=False), "without num_steps"),
    "batch first, static": (dict(time_var=False, num_steps=3, time_first=False), "time_first=False"),
    "K = 0": (dict(K=0), "K is 0"), "K = True": (dict(K=True), "K is True"), "K = 1.5": (dict(K=1.5), "K is 1.5"),
    "K too large": (dict(time_var=False, num_steps=3, K=4), "K=4 is more than num_steps=3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    options, message = BAD[case]
    net = chain()
    with pytest.raises(MemextError, match=message) as caught:
        backprop.TBPTT(net, batches(), torch.optim.SGD(net.parameters(), lr=0.1), SF.ce_rate_loss(), **options)
    assert isinstance(caught.value, ValueError) and "snntorch_memext.backprop.TBPTT" in str(caught.value)


def test_bad_nets_and_loaders():
    silent = nn.Sequential(nn.Linear(6, 5), lif())
    optimizer = torch.optim.SGD(silent.parameters(), lr=0.1)
    with pytest.raises(MemextError, match="spikes only.*output=True"):  # noqa: RUF043
        backprop.BPTT(silent, batches(), optimizer, SF.ce_rate_loss())
    for epoch in (backprop.BPTT, backprop.TBPTT, backprop.SLTT, backprop.SLTTK):
        with pytest.raises(MemextError, match="gave no batch"):
            epoch(silent, [], optimizer, SF.ce_rate_loss())


# ---- SLTT ----

def per_step(net, x, loss_of, chosen):
    """Gradients by autograd with detached states, from the sum over the chosen steps, divided by T; and the outputs."""
    def cut(t):
        for n in neurons(net):
            n.mem = n.mem.detach()

    at_rest(net)
    out, _ = plain(net, x, between=cut)
    total = sum(loss_of(tuple(o[t] for o in out), t) for t in chosen) / len(x)
    grads = torch.autograd.grad(total, list(net.parameters()))
    return {n: g for (n, _), g in zip(net.named_parameters(), grads)}, out, total


def asked(out, t):
    """A loss that differs from step to step."""
    return nn.functional.mse_loss(out[1], torch.full_like(out[1], 0.1 * t)) + (out[0] * (t + 1)).mean()


@pytest.mark.parametrize("steps", [None, [0], [11], [2, 3, 8]], ids=str)
@pytest.mark.parametrize("reset", RESETS)
def test_online_train_step_is_autograd_with_detached_states(reset, steps):
    x = inputs(12)
    net = firing(chain(beta=0.8, learn_beta=True, learn_threshold=True, reset_mechanism=reset), x)
    chosen = list(range(12)) if steps is None else steps
    wanted, outputs, total = per_step(net, x, asked, chosen)
    at_rest(net)
    out, loss = online_train_step(net, x, asked, steps=steps)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(out, outputs))
    assert loss.item() == pytest.approx(total.item() * 12 / len(chosen), rel=1e-6) and not loss.requires_grad
    assert_gradients({n: p.grad for n, p in net.named_parameters()}, wanted)
    assert all(n.mem.grad_fn is None for n in neurons(net))


def test_online_train_step_adds_up_and_goes_on():
    """Gradients are added to .grad, and a second call starts where the first one ended."""
    x = inputs(12)
    net = firing(chain(beta=0.8), x)
    at_rest(net)
    online_train_step(net, x[:5], lambda out, t: asked(out, t) * 5 / 12)
    online_train_step(net, x[5:], lambda out, t: asked(out, t + 5) * 7 / 12)
    wanted = per_step(at_rest(net), x, asked, range(12))[0]
    assert_gradients({n: p.grad for n, p in net.named_parameters()}, wanted)


def test_the_expectation_over_steps_is_k_of_t():
    """All subsets of 2 of 5 steps, one after the other: their mean is 2/5 of SLTT's gradient."""
    x = inputs(5)
    net = firing(chain(beta=0.8, learn_beta=True), x).double()
    net = nn.Sequential(*net[:2], nn.Flatten(), *net[2:])
    net[2].forward = lambda spikes: spikes.double()  # the framework's spikes are float32
    x = x.double()
    subsets = list(itertools.combinations(range(5), 2))
    for steps in subsets:
        online_train_step(at_rest(net), x, asked, steps=steps)
    mean = {n: p.grad / len(subsets) for n, p in net.named_parameters()}
    net.zero_grad()
    online_train_step(at_rest(net), x, asked)
    assert_gradients(mean, {n: p.grad * 2 / 5 for n, p in net.named_parameters()}, 1e-6)  # float32 spikes' gradients


def test_k_steps_are_drawn_anew_and_evenly():
    x = inputs(6)
    net = chain(beta=0.8)
    counts = torch.zeros(6)
    for _ in range(200):
        seen = []
        online_train_step(at_rest(net), x, lambda out, t, seen=seen: (seen.append(t), asked(out, t))[1], k=2)
        assert len(set(seen)) == 2
        counts[seen] += 1
    # each step in 200/3 of 200 draws, standard deviation 6.7
    assert counts.min() > 66.7 - 4 * 6.7 and counts.max() < 66.7 + 4 * 6.7
    torch.manual_seed(1)
    drawn = frozenset(torch.randperm(6)[:2].tolist())
    torch.manual_seed(1)
    seen = []
    online_train_step(at_rest(net), x, lambda out, t: (seen.append(t), asked(out, t))[1], k=2)
    assert set(seen) == drawn


def test_steps_that_are_not_chosen_move_states_and_statistics():
    x = inputs(9, batch=8)
    net = firing(chain(beta=0.8, between=[nn.BatchNorm1d(12)]), x)
    found = []
    for steps in (None, [4]):
        copied = at_rest(copy.deepcopy(net))
        out, _ = online_train_step(copied, x, asked, steps=steps)
        found.append((*out, *(b.clone() for b in copied.buffers())))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert int(copied[1].num_batches_tracked) == 9


def test_memory_does_not_grow_with_time():
    net = chain(beta=0.8)
    wide = nn.Sequential(nn.Linear(6, 256), lif(), nn.Linear(256, 256), lif(), nn.Linear(256, 5), lif(output=True))

    def peak(steps, call):
        x = inputs(steps, batch=16)
        return measure(lambda: call(at_rest(wide), x), model=wide, timeline=False).peak_bytes - x.numel() * 4

    def online(net, x):
        net.zero_grad()
        online_train_step(net, x, lambda out, t: out[1].square().mean())

    outputs = 2 * 16 * 5 * 4  # bytes a step of what the call returns, twice: in rows, then stacked
    few, many = peak(10, online), peak(80, online)
    assert (many - few) - 2 * outputs * 70 < 0.02 * few, (few, many)
    long = peak(80, lambda net, x: plain(net, x)[0][1].square().mean().backward())
    assert long > 4 * many
    del net


def test_sltt_and_slttk_train():
    """One epoch, against updates with the gradients of `per_step`."""
    loader = batches(3, steps=10)
    net = fires(chain(beta=0.8), loader)
    criterion = SF.ce_rate_loss()

    def by_hand(net, optimizer):
        total = 0.0
        for x, targets in loader:
            grads, _, loss = per_step(net, x, lambda out, t, y=targets: criterion(out[0][None], y), range(10))
            for name, p in net.named_parameters():
                p.grad = grads[name]
            optimizer.step()
            total = total + loss.detach()
        return total / 3

    wanted = trained(by_hand, net)
    got = trained(lambda net, o: backprop.SLTT(net, loader, o, criterion), net)
    assert_same_training(got, wanted, net)
    every = trained(lambda net, o: backprop.SLTTK(net, loader, o, criterion, K=10), net)
    assert_same_training(every, wanted, net)
    few, trained_net = trained(lambda net, o: backprop.SLTTK(net, loader, o, criterion, K=3), net)
    assert few.isfinite().all()
    assert all(not torch.equal(p, q) for p, q in zip(trained_net.parameters(), net.parameters()))
    static = batches(static=True)
    loss, _ = trained(lambda net, o: backprop.SLTT(net, static, o, criterion, num_steps=7, time_var=False), net)
    assert loss.isfinite().all()


def test_sltt_is_method_online():
    """The same gradient in one call, from a loss that is the mean over the steps."""
    x = inputs(12)
    net = firing(chain(beta=0.8, learn_beta=True), x)
    mean = lambda out, final: sum(asked((out[0][t], out[1][t]), t) for t in range(12)) / 12  # noqa: E731
    once = run(net, x, "online", loss=mean, learn_x=False)
    online_train_step(at_rest(net), x, asked)
    assert_gradients({n: p.grad for n, p in net.named_parameters()},
                     {n: g for n, g in once.grads.items() if n != "x"})
    assert_values(once, run(net, x))
