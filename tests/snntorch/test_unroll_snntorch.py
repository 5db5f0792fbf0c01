"""unroll with snnTorch neurons that hold their states, against a Python loop over time and Torch's autograd."""
from __future__ import annotations

import gc
import weakref

import pytest
import snntorch as snn
import torch
from snntorch import spikegen, surrogate
from temporal_nets import (
    DOUBLE,
    LEAKS,
    RESETS,
    AsDouble,
    Residual,
    assert_fire,
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
    rates,
    run,
    truth,
    weighted,
)
from torch import nn

from shared_core.errors import MemextError
from shared_core.temporal import unroll
from snntorch_memext.neurons import FusedLeaky

resets = pytest.mark.parametrize("reset", RESETS)
delays = pytest.mark.parametrize("delay", [True, False], ids=["delay", "same-step"])
methods = pytest.mark.parametrize("method", ["checkpoint", "reverse"])


def compare(net, x, method, exact=True, **options):
    """The method's run, after it was found equal to the plain loop's. every: the method's option, not the loop's."""
    shared = {k: v for k, v in options.items() if k in ("state", "loss", "num_steps", "learn_x", "forward")}
    wanted, got = run(net, x, **shared), run(net, x, method, **options)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads, exact=(lambda: truth(net, x, **shared)) if exact else None)
    return got, wanted


# ---- values and gradients ----

@delays
@resets
def test_every_reset_and_leak(reset, delay):
    for leak in LEAKS:
        x = inputs(15)
        net = firing(chain(beta=leak, reset_mechanism=reset, reset_delay=delay), x)
        wanted = run(net, x)
        assert_moves(wanted)
        for method, every in (("store", None), ("checkpoint", None), ("reverse", None), ("reverse", 1)):
            got = run(net, x, method, every=every)
            assert_values(got, wanted)
            assert_gradients(got.grads, wanted.grads, exact=lambda: truth(net, x))  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize("leak", [0.05, 0.5, 0.9, 1.0])
@methods
@resets
def test_a_thousand_steps(reset, method, leak):
    for delay, sg in ((True, surrogate.atan(2.0)), (False, surrogate.fast_sigmoid(25.0))):
        x = inputs(1000, batch=4)
        if reset == "none":  # an integrator without reset and without leak goes nowhere with this mean
            x = x - 0.3
        net = firing(chain(beta=leak, reset_mechanism=reset, reset_delay=delay, spike_grad=sg, learn_beta=True), x)
        compare(net, x, method)


@methods
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 33])
def test_any_number_of_steps(steps, method):
    x = inputs(steps, batch=16)
    net = firing(chain(beta=0.7), x)
    wanted = run(net, x)
    for every in (None, 2, 5, 64, 1000):
        got = run(net, x, method, every=every)
        assert_values(got, wanted)
        assert_gradients(got.grads, wanted.grads, exact=lambda: truth(net, x))


LEARNING = {
    "scalar beta": dict(beta=0.8, learn_beta=True),
    "vector beta": dict(beta=torch.linspace(0.2, 0.95, 5), learn_beta=True),
    "scalar threshold": dict(learn_threshold=True),
    "vector threshold": dict(threshold=torch.linspace(0.5, 1.1, 5), learn_threshold=True),
    "graded": dict(graded_spikes_factor=1.7),
    "learned factor": dict(graded_spikes_factor=0.6, learn_graded_spikes_factor=True),
    "all, steep": dict(beta=torch.linspace(0.2, 0.95, 5), learn_beta=True, learn_threshold=True,
                       graded_spikes_factor=1.3, learn_graded_spikes_factor=True,
                       spike_grad=surrogate.fast_sigmoid(25.0)),
    "beta above one": dict(beta=1.2, learn_beta=True),
}


@methods
@delays
@resets
@pytest.mark.parametrize("case", LEARNING)
def test_neurons_that_learn(case, reset, delay, method):
    options = dict(LEARNING[case], reset_mechanism=reset, reset_delay=delay)
    x = inputs(19)
    net = firing(nn.Sequential(nn.Linear(6, 5), lif(**options), nn.Linear(5, 5), lif(output=True, **options)), x)
    _, wanted = compare(net, x, method)
    if case != "beta above one":  # the framework clamps, and Torch's clamp has no gradient there
        assert_moves(wanted)


@methods
@pytest.mark.parametrize("sg", [surrogate.fast_sigmoid(25.0), surrogate.sigmoid(3.0), surrogate.atan(4.0),
                                surrogate.straight_through_estimator()],
                         ids=["fast_sigmoid", "sigmoid", "atan", "straight_through"])
def test_surrogates(sg, method):
    x = inputs(31)
    compare(firing(chain(beta=0.8, spike_grad=sg, learn_beta=True, learn_threshold=True), x), x, method)


@methods
@delays
@resets
def test_a_net_with_its_own_forward(reset, delay, method):
    x = inputs(21)
    compare(firing(Residual(beta=0.85, learn_beta=True, reset_mechanism=reset, reset_delay=delay), x), x, method)


@methods
@resets
def test_states_that_meet_the_threshold(reset, method):
    """Weights, inputs and thresholds are multiples of 1/4, and nothing leaks (or, without reset, nothing stays)."""
    net, x = chain(beta=0.0 if reset == "none" else 1.0, reset_mechanism=reset), inputs(40).round()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * 4).round() / 4)
        net[2].bias.fill_(0.25)
        for i, n in enumerate(neurons(net)):
            n.threshold.fill_(next(v / 4 for v in range(1, 40) if n.threshold.fill_(v / 4) and rates(net, x)[i] < 0.35))
    met = []
    hook = net[1].register_forward_hook(lambda m, a, o: met.append((m.mem == m.threshold).float().mean()))
    assert_fire(net, x)
    hook.remove()
    assert torch.stack(met).mean() > 0.02, "no potential meets the threshold"
    compare(net, x, method)


@methods
@resets
@pytest.mark.parametrize("own", [False, True], ids=["snntorch's atan", "a surrogate that keeps float64"])
def test_float64(own, reset, method):
    """snnTorch's surrogates return float32 spikes in float64 nets, and the fused kernels do as well. The framework also
    adds the share of the reset (subtract) in a threshold's gradient up in float32 then: 1e-6 for that one."""
    options = dict(reset_mechanism=reset, learn_beta=True, learn_threshold=True,
                   **(dict(spike_grad=keeps_dtype) if own else {}))
    net = nn.Sequential(nn.Linear(6, 12), lif(**options), AsDouble(), nn.Linear(12, 5), lif(output=True, **options))
    for leak in LEAKS[::2]:
        x = inputs(25, dtype=torch.float64)
        with torch.no_grad():
            net[1].beta.fill_(leak), net[4].beta.fill_(leak), net[1].threshold.fill_(0.8), net[4].threshold.fill_(0.8)
        firing(net.double(), x)
        wanted, got = run(net, x), run(net, x, method)
        assert_values(got, wanted)
        for name, g in wanted.grads.items():
            loose = "threshold" in name and reset == "subtract" and not own
            assert_gradients({name: got.grads[name]}, {name: g}, 1e-6 if loose else DOUBLE)


# ---- other neurons ----

class Spikes(nn.Module):
    """Of a neuron that returns its states, too."""

    def forward(self, out):
        return out[0]


OTHERS = {
    "Synaptic": lambda n, **o: snn.Synaptic(alpha=0.6, beta=0.8, threshold=0.7, init_hidden=True, learn_alpha=True,
                                            learn_beta=True, learn_threshold=True, **o),
    "Synaptic zero, same step": lambda n, **o: snn.Synaptic(alpha=0.6, beta=0.8, threshold=0.7, init_hidden=True,
                                                            learn_beta=True, reset_mechanism="zero", reset_delay=False,
                                                            **o),
    # learn_alpha of Alpha cannot be constructed in snnTorch 1.0.0, learn_beta of Lapicque cannot be copied
    "Alpha": lambda n, **o: snn.Alpha(alpha=0.8, beta=0.6, threshold=0.3, init_hidden=True, learn_threshold=True, **o),
    "Lapicque": lambda n, **o: snn.Lapicque(beta=0.8, threshold=0.3, init_hidden=True, learn_threshold=True, **o),
    "RLeaky": lambda n, **o: snn.RLeaky(beta=0.8, linear_features=n, threshold=0.6, init_hidden=True, learn_beta=True,
                                        **o),
    "RLeaky one to one": lambda n, **o: snn.RLeaky(beta=0.8, V=0.4, all_to_all=False, threshold=0.6, init_hidden=True,
                                                   reset_mechanism="zero", **o),
    "RSynaptic": lambda n, **o: snn.RSynaptic(alpha=0.5, beta=0.8, linear_features=n, threshold=0.6, init_hidden=True,
                                              learn_alpha=True, **o),
}


@pytest.mark.parametrize("method", ["store", "checkpoint", "reverse"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_neurons(name, method):
    make = OTHERS[name]
    x = inputs(18)
    net = firing(nn.Sequential(nn.Linear(6, 8), make(8), nn.Linear(8, 5), make(5, output=True)), x)
    compare(net, x, method, exact=False)


@pytest.mark.parametrize("method", ["store", "checkpoint", "reverse"])
def test_slstm_and_two_kinds_in_one_net(method):
    """SLSTM's input and hidden sizes are one: with others, the framework starts it anew in every step."""
    x = inputs(18)
    net = nn.Sequential(nn.Linear(6, 8), snn.SLSTM(8, 8, threshold=0.05, init_hidden=True), nn.Linear(8, 5),
                        lif(beta=0.8, output=True))
    compare(firing(net, x), x, method, exact=False)


# ---- layers that remember, and draw ----

@methods
def test_batch_norm_in_training(method):
    """Running statistics move once a step, as in the loop; with momentum=None, they count the steps."""
    for momentum in (0.1, None):
        x = inputs(17, batch=8)
        net = firing(chain(beta=0.8, between=[nn.BatchNorm1d(12, momentum=momentum)]), x)
        got, _ = compare(net, x, method)
        assert int(got.buffers["1.num_batches_tracked"]) == 17
        net.eval()
        compare(net, x, method)


class OwnNorm(nn.Module):
    """Running statistics without a counter; Torch's batch_norm does not count its writes as changes of a tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen_mean", torch.zeros(12))
        self.register_buffer("seen_var", torch.ones(12))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.seen_mean, self.seen_var, training=True)


@methods
def test_running_statistics_of_the_users_own(method):
    x = inputs(9, batch=8)
    net = firing(chain(beta=0.8, between=[OwnNorm()]), x)
    got, _ = compare(net, x, method)
    assert got.buffers["1.seen_mean"].abs().max() > 0.05


@methods
def test_dropout_draws_the_loops_masks(method):
    x = inputs(17)
    net = firing(chain(beta=0.8, between=[nn.Dropout(0.3)]), x)
    got, _ = compare(net, x, method, every=3)
    net.eval()
    assert not torch.equal(run(net, x).outputs[1], got.outputs[1])
    held = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.3), nn.BatchNorm1d(12), lif(), nn.Dropout(0.2),
                         nn.Linear(12, 5), lif(output=True))
    compare(firing(held, x), x, method)


@methods
def test_autocast(method):
    x = inputs(15)
    net = firing(chain(beta=0.8, learn_beta=True), x)

    def under(net):
        def step(x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return net(x)
        return step

    compare(net, x, method, forward=under)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        wanted = run(net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(net, x, method)
    assert_values(got, wanted)
    # Weights are cast once a step here, as without the cache: the gradient of each cast is rounded to bfloat16.
    assert_gradients(got.grads, wanted.grads)
    assert not torch.equal(got.outputs[1], run(net, x).outputs[1]), "autocast did nothing"


# ---- inputs ----

@methods
def test_one_input_for_every_step(method):
    x = inputs(1)[0] + 0.3
    net = firing(chain(beta=0.8), x, num_steps=21)
    for every in (None, 4):
        compare(net, x, method, exact=False, num_steps=21, every=every)


@methods
def test_input_from_a_function_with_parameters(method):
    encoder, base = nn.Linear(6, 6), inputs(13)
    net = firing(chain(beta=0.8), lambda t: encoder(base[t]), num_steps=13)
    found = []
    for how in (None, method):
        encoder.zero_grad()
        found.append(run(net, lambda t: encoder(base[t]), how, num_steps=13))
        found[-1].grads |= {"encoder." + n: p.grad.clone() for n, p in encoder.named_parameters()}
    assert_values(found[1], found[0])
    assert_gradients(found[1].grads, found[0].grads)
    assert_moves(found[0])


@methods
def test_random_rate_coding(method):
    """Spikes are drawn anew in every step, and the same ones again when the step is rebuilt."""
    image = torch.rand(3, 6)
    net = firing(chain(beta=0.8), lambda t: 2 * spikegen.rate(image, num_steps=1)[0], num_steps=14)
    compare(net, lambda t: 2 * spikegen.rate(image, num_steps=1)[0], method, exact=False, num_steps=14)


@methods
def test_inputs_with_and_without_gradient(method):
    x = inputs(12)
    net = firing(chain(beta=0.8), x)
    assert compare(net, x, method, learn_x=False)[0].grads["x"] is None
    net.requires_grad_(False)
    compare(net, x, method)
    base = inputs(12).requires_grad_()  # a view that is not contiguous, of something that learns
    found = []
    for how in (None, method):
        base.grad = None
        at_rest(net)
        x = base.transpose(1, 2).contiguous().transpose(1, 2) * 2
        weighted(plain(net, x)[0] if how is None else unroll(net, x, how)).backward()
        found.append({"x": base.grad})
    assert_gradients(found[1], found[0])


# ---- losses ----

LOSSES = {
    "spikes": lambda out, final: weighted(out[:1]),
    "membranes": lambda out, final: weighted(out[1:]),
    "some steps": lambda out, final: weighted([o[torch.tensor([1, 4, 5])] for o in out]),
    "first step": lambda out, final: weighted([o[0] for o in out]),
    "last step": lambda out, final: weighted([o[-1] for o in out]),
    "counts": lambda out, final: nn.functional.cross_entropy(out[0].sum(0), torch.tensor([0, 3, 1])),
    "both, squared": lambda out, final: (out[0].mean(0) - 0.3).square().sum() + (out[1] * out[1]).sum(),
}


@methods
@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss(loss, method):
    x = inputs(11)
    compare(firing(chain(beta=0.8, learn_beta=True), x), x, method, loss=LOSSES[loss])


# ---- autograd's other uses ----

def test_hooks_of_parameters_fire_once():
    x = inputs(16)
    net = firing(chain(beta=0.8, learn_beta=True), x)
    seen, handles = {}, []
    for name, p in net.named_parameters():
        handles.append(p.register_hook(lambda g, name=name: seen[name].append("gradient")))
        handles.append(p.register_post_accumulate_grad_hook(lambda p, name=name: seen[name].append("sum")))
    for method in ("checkpoint", "reverse", "online"):
        seen.update({name: [] for name, _ in net.named_parameters()})
        weighted(unroll(at_rest(net), x, method)).backward()
        assert all(calls == ["gradient", "sum"] for calls in seen.values()), (method, seen)


@methods
def test_hooks_change_gradients_as_in_the_loop(method):
    x = inputs(9)
    net = firing(chain(beta=0.8), x)
    found = []
    for how in (None, method):
        net.zero_grad()
        handle = net[0].weight.register_hook(lambda g: g.clamp(-0.1, 0.1))
        out = plain(at_rest(net), x)[0] if how is None else unroll(at_rest(net), x, how)
        weighted(out).backward()
        handle.remove()
        found.append(net[0].weight.grad.clone())
    assert found[0].abs().max() == 0.1
    assert_gradients({"w": found[1]}, {"w": found[0]})


@methods
def test_two_sequences_in_one_graph(method):
    """The second call starts at rest; then again where the first one ended. retain_graph runs backward twice."""
    a, b = inputs(10), inputs(13)
    net = firing(chain(beta=0.8), a)
    for again in (False, True):
        found = []
        for how in (None, method):
            net.zero_grad()
            total = 0.0
            for x in (a, b):
                if x is a or not again:
                    at_rest(net)
                else:
                    for n in neurons(net):
                        n.mem = n.mem.detach()
                total = total + weighted(plain(net, x)[0] if how is None else unroll(net, x, how))
            total.backward(retain_graph=True)
            total.backward()
            found.append({name: p.grad.clone() for name, p in net.named_parameters()})
        assert_gradients(found[1], found[0])


@methods
def test_grad_of_some_and_frozen_and_shared_parameters(method):
    x = inputs(12)
    net = nn.Sequential(nn.Linear(6, 6), lif(), nn.Linear(6, 6), lif(), nn.Linear(6, 5), lif(output=True))
    with torch.no_grad():
        net[4].bias.add_(0.3)
    net[2].weight, net[4].weight = net[0].weight, nn.Parameter(net[4].weight.detach(), requires_grad=False)
    firing(net, x)
    wanted, got = run(net, x), run(net, x, method)
    assert_values(got, wanted)
    assert_gradients(got.grads, wanted.grads)
    assert got.grads["4.weight"] is None and "2.weight" not in got.grads  # named once
    some, found = [net[0].weight, net[2].bias], []
    for how in (None, method):
        out = plain(at_rest(net), x)[0] if how is None else unroll(at_rest(net), x, how)
        found.append(dict(enumerate(torch.autograd.grad(weighted(out), some))))
    assert_gradients(found[1], found[0])
    assert all(p.grad is None for p in net.parameters())


@methods
def test_without_gradients(method):
    x = inputs(12)
    net = firing(chain(beta=0.8), x)
    wanted = run(net, x)
    with torch.no_grad():
        out = unroll(at_rest(net), x, method)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(out, wanted.outputs))
    with torch.inference_mode():
        assert torch.equal(unroll(at_rest(net), x, method)[1], wanted.outputs[1])
    out = unroll(at_rest(net).requires_grad_(False), x, method)
    assert torch.equal(out[0], wanted.outputs[0]) and not out[1].requires_grad


@methods
def test_double_backward_is_refused(method):
    x = inputs(5)
    net = chain()
    with pytest.raises(MemextError, match=r"create_graph.*method='store'"):
        torch.autograd.grad(weighted(unroll(net, x, method)), list(net.parameters()), create_graph=True)
    torch.autograd.grad(weighted(unroll(at_rest(net), x, "store")), list(net.parameters()), create_graph=True)


@methods
def test_a_parameter_changed_in_between_is_noticed(method):
    x = inputs(5)
    net = chain()
    loss = weighted(unroll(net, x, method))
    with torch.no_grad():
        net[0].weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- what is left behind ----

def objects(net):
    """Class, attributes that are no tensors, and the identity of every tensor, of every module."""
    return [(type(m), {k: v for k, v in vars(m).items() if not k.startswith("_") and not torch.is_tensor(v)},
             sorted(vars(m)), {n: id(p) for n, p in m._parameters.items()}, {n: id(b) for n, b in m._buffers.items()})
            for m in net.modules()]


@pytest.mark.parametrize("method", ["checkpoint", "reverse", "online"])
def test_modules_are_untouched(method):
    x = inputs(12)
    net = firing(chain(beta=0.8, between=[nn.BatchNorm1d(12)]), x)
    at_rest(net)
    plain(net, x[:1])  # attributes that the first step makes are there
    own = [n.mem.detach() for n in neurons(net)]
    for n, mem in zip(neurons(net), own):
        n.mem = mem
    classes = [type(m) for m in net.modules()]
    loss = weighted(unroll(net, x, method))
    assert [type(m) for m in net.modules()] == classes and type(net[2]) is snn.Leaky
    before, states = objects(net), [n.mem.clone() for n in neurons(net)]
    loss.backward()
    assert objects(net) == before
    assert all(torch.equal(n.mem, s) for n, s in zip(neurons(net), states))
    assert all(n.mem.grad_fn is None and not n.mem.requires_grad for n in neurons(net)), "states keep a graph alive"


def test_nothing_of_the_graph_outlives_the_loss():
    x = inputs(12)
    net = firing(chain(beta=0.8), x)
    for method in ("checkpoint", "reverse", "online"):
        out = unroll(at_rest(net), x, method)
        node = weakref.ref(out[0].grad_fn)
        weighted(out).backward()
        del out
        gc.collect()
        assert node() is None, method


class Failing(nn.Module):
    """Raises when it is called the n-th time."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise KeyError("the user's own")
        return x


@pytest.mark.parametrize("method", ["checkpoint", "reverse", "online"])
def test_an_error_in_the_step_leaves_the_net_usable(method):
    x = inputs(9)
    net = firing(chain(beta=0.8, between=[Failing(-1), nn.BatchNorm1d(12)]), x)
    net[1].left = 6
    classes, ids = [type(m) for m in net.modules()], [id(p) for p in net.parameters()]
    with pytest.raises(KeyError, match="the user's own"):
        unroll(at_rest(net), x, method)
    assert [type(m) for m in net.modules()] == classes and [id(p) for p in net.parameters()] == ids
    assert all("forward" not in vars(m) for m in net.modules())
    net[1].left = 14  # in the backward pass
    loss = weighted(unroll(at_rest(net), x, method))
    states, running = [n.mem for n in neurons(net)], net[2].running_mean
    with pytest.raises(KeyError, match="the user's own"):
        loss.backward()
    assert [type(m) for m in net.modules()] == classes and [id(p) for p in net.parameters()] == ids
    assert all(n.mem is s for n, s in zip(neurons(net), states)) and net[2].running_mean is running
    net[1].left = -1
    for p in net.parameters():
        p.grad = None
    if method != "online":
        compare(net, x, method)


# ---- the state left in the neurons ----

@methods
def test_windows_with_attached_states_are_one_sequence(method):
    x = inputs(20)
    net = firing(chain(beta=0.8, learn_beta=True), x)
    whole = run(net, x)
    at_rest(net), net.zero_grad()
    out = [unroll(net, part, method, final_state="attached") for part in (x[:7], x[7:8], x[8:])]
    assert net[1].mem.requires_grad
    joined = [torch.cat(parts) for parts in zip(*out)]
    assert all(torch.equal(a, b) for a, b in zip(joined, whole.outputs))
    weighted(joined).backward()
    assert_gradients({n: p.grad for n, p in net.named_parameters()},
                     {n: g for n, g in whole.grads.items() if n != "x"}, exact=lambda: truth(net, x))


@methods
def test_windows_with_detached_states_are_truncated(method):
    x = inputs(20)
    net = firing(chain(beta=0.8), x)
    found = []
    for how in (None, method):
        net.zero_grad()
        at_rest(net)
        for part in (x[:7], x[7:]):
            weighted(plain(net, part)[0] if how is None else unroll(net, part, how)).backward()
            for n in neurons(net):
                assert how is None or not n.mem.requires_grad
                n.mem = n.mem.detach()
        found.append(({n: p.grad.clone() for n, p in net.named_parameters()}, net[1].mem))
    assert torch.equal(found[0][1], found[1][1])
    assert_gradients(found[1][0], found[0][0])


@methods
def test_first_states_and_last_states_have_gradients(method):
    x = inputs(8)
    net = firing(chain(beta=0.8), x)
    found = []
    for how in (None, method):
        first = [torch.full((3, 12), 0.4, requires_grad=True), torch.full((3, 5), 0.9, requires_grad=True)]
        for n, mem in zip(neurons(net), first):
            n.mem = 1.0 * mem
        out = plain(net, x)[0] if how is None else unroll(net, x, how, final_state="attached")
        loss = weighted(out) + weighted([n.mem for n in neurons(net)])
        found.append(dict(enumerate(torch.autograd.grad(loss, [*first, *net.parameters()]))))
    assert_gradients(found[1], found[0])
    assert all(g.abs().max() > 0 for g in found[0].values())


# ---- several steps at once ----

@methods
@resets
@pytest.mark.parametrize("k", [2, 8, 50])
def test_steps_at_once(k, reset, method):
    """Wider matrices may round otherwise: the potentials are near the loop's, and here the spikes are the same."""
    x = inputs(21)
    net = firing(chain(beta=0.8, learn_beta=True, reset_mechanism=reset), x)
    wanted = run(net, x)
    for every in (None, 3 * k):
        got = run(net, x, method, steps_at_once=k, every=every)
        assert torch.equal(got.outputs[0], wanted.outputs[0])
        torch.testing.assert_close(got.outputs[1], wanted.outputs[1], rtol=1e-5, atol=1e-6)
        assert_gradients(got.grads, wanted.grads, 2e-5, exact=lambda: truth(net, x))  # two orders of additions, not one


@methods
def test_steps_at_once_are_the_same_chunks_every_time(method):
    """Against the loop in the same chunks: stateless layers see [k N, *], neurons step through [k, N, *]."""
    x = inputs(21)
    net = at_rest(firing(chain(beta=0.8), x))
    seen = []
    with torch.no_grad():
        for part in x.split(4):
            spk1 = torch.stack([net[1](c) for c in net[0](part.flatten(0, 1)).unflatten(0, (-1, 3))])
            cur = net[2](spk1.flatten(0, 1)).unflatten(0, (-1, 3))
            seen += [net[3](c) for c in cur]
    got = run(net, x, method, steps_at_once=4)
    assert all(torch.equal(a, torch.stack(b)) for a, b in zip(got.outputs, zip(*seen)))


def test_auto_and_fast(monkeypatch):
    from shared_core.temporal import _unroll
    x = inputs(21)
    net = firing(chain(beta=0.8), x)
    wanted = run(net, x)
    for option in ("auto", "fast"):
        got = run(net, x, "reverse", steps_at_once=option)
        assert torch.equal(got.outputs[0], wanted.outputs[0])
        assert_gradients(got.grads, wanted.grads, 2e-5, exact=lambda: truth(net, x))
    normed = firing(chain(beta=0.8, between=[nn.BatchNorm1d(12)]), x)  # not merged: as with steps_at_once=1
    for option in ("auto", "fast"):
        assert_values(run(normed, x, "reverse", steps_at_once=option), run(normed, x))
    widths = []
    own = _unroll.forward
    monkeypatch.setattr(_unroll, "_same", lambda *a: False)  # a probe that finds other spikes
    monkeypatch.setattr(_unroll, "forward", lambda course, *a: (widths.append(course.width), own(course, *a))[1])
    with torch.no_grad():
        unroll(at_rest(net), x, steps_at_once="auto")
        unroll(at_rest(net), x, steps_at_once="fast")
    assert widths == [1, 8]


class SaysSo(nn.Module):
    steps_at_once = True

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.fc2, self.lif2 = nn.Linear(6, 12), lif(), nn.Linear(12, 5), lif(output=True)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif(self.fc(x))))


def test_a_module_may_say_that_its_steps_can_be_merged():
    x = inputs(16)
    net = firing(SaysSo(), x)
    wanted, got = run(net, x), run(net, x, "reverse", steps_at_once=8)
    assert torch.equal(got.outputs[0], wanted.outputs[0])
    assert_gradients(got.grads, wanted.grads, 2e-5, exact=lambda: truth(net, x))


# ---- the trade between memory and time ----

def test_fewer_anchors_keep_less():
    from shared_core.memory import measure
    x = inputs(100, batch=16)
    net = firing(chain(beta=0.8), x)
    def kept(method, options):
        return measure(lambda: unroll(at_rest(net), x, method, **options)[1].sum().backward()).saved_bytes

    # of 100 steps, 16 samples, 17 neurons: float32 potentials, against a tenth of them
    assert kept("reverse", {"every": 1}) - kept("reverse", {"every": 10}) == pytest.approx(90 * 16 * 17 * 4, rel=0.05)
    assert kept("reverse", {}) < kept("store", {}) / 5


def test_fused_neurons_of_the_users_own():
    """A net that holds FusedLeaky already stays as it is."""
    x = inputs(14)
    net = nn.Sequential(nn.Linear(6, 12), FusedLeaky(beta=0.8, threshold=0.8, init_hidden=True), nn.Linear(12, 5),
                        FusedLeaky(beta=0.8, threshold=0.8, init_hidden=True, output=True))
    got, _ = compare(firing(net, x), x, "reverse")
    assert type(got.net[1]) is FusedLeaky
