"""FusedLeaky inside snnTorch: everything a user or snnTorch itself does to a Leaky, done to ours and to theirs."""
from __future__ import annotations

import copy
import gc
import inspect
import io
import itertools
import pickle
import warnings
import weakref

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as host_surrogate
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shared_core.errors import MemextError
from snntorch_memext import _host
from snntorch_memext import surrogate as our_surrogate
from snntorch_memext.neurons import FusedLeaky, FusedSynaptic, overrides, why_host_path


def _net(leaky, **options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), leaky(beta=0.9, threshold=0.4, init_hidden=True, **options),
                         nn.Linear(20, 3), leaky(beta=0.8, threshold=0.3, init_hidden=True, output=True, **options))


def _train(net, steps=4, seed=1):
    """Losses of a few training steps, the loop of snnTorch's tutorials."""
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(6, 5, 8, generator=random), torch.randint(0, 3, (5,), generator=random)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    losses, rates = [], []
    for _ in range(steps):
        utils.reset(net)
        spikes = []
        for x_t in x:
            spk, _ = net(x_t)
            spikes.append(spk)
        spikes = torch.stack(spikes)
        loss = nn.functional.cross_entropy(spikes.sum(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(spikes.mean().item())
    return losses, rates


# float32 sums in another order, carried through four optimizer steps; a flipped spike would be 1e-2
CLOSE = dict(rtol=1e-5, atol=1e-6)


def test_training_with_utils_reset():
    (theirs, rates), (ours, _) = _train(_net(snn.Leaky)), _train(_net(FusedLeaky))
    assert 0.05 < sum(rates) / len(rates) < 0.95 and theirs[0] != theirs[-1]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **CLOSE)


@pytest.mark.parametrize("options", [{}, {"learn_beta": True, "learn_threshold": True, "reset_delay": False}],
                         ids=["fixed", "learned"])
def test_reassigned_class(options):
    """The way `retrofit` enters: an existing snn.Leaky, before or after its first step, becomes ours and goes back."""
    net, twin = _net(snn.Leaky, **options), _net(snn.Leaky, **options)
    for _used in (False, True):
        for module in net:
            if isinstance(module, snn.Leaky):
                module.__class__ = FusedLeaky
                assert why_host_path(module) is None
        ours, theirs = _train(net)[0], _train(twin)[0]
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **CLOSE)
        if not options:  # `reset` is read after the optimizer moved the threshold
            assert torch.equal(net[1].reset, twin[1].reset)
        for module in net:
            if isinstance(module, FusedLeaky):
                module.__class__ = snn.Leaky
        net.load_state_dict(twin.state_dict())  # the next round starts from equal weights
    torch.testing.assert_close(torch.tensor(_train(net)[0]), torch.tensor(_train(twin)[0]), **CLOSE)


def test_utils_reset_finds_and_detaches():
    lif = FusedLeaky(0.9, init_hidden=True)
    net = nn.Sequential(nn.Linear(4, 4), lif)
    net(torch.ones(2, 4))
    assert lif.mem.requires_grad and lif.mem.abs().sum() > 0
    utils.reset(net)
    assert not lif.mem.requires_grad and lif.mem.shape == (2, 4) and lif.mem.abs().sum() == 0
    net(torch.ones(2, 4))
    snn.Leaky.detach_hidden()
    assert lif.mem.is_leaf and lif.mem.abs().sum() > 0
    assert lif in snn.SpikingNeuron.instances


def test_spikes_and_states_can_be_detached_in_place():
    """As snntorch.SpikingNeuron.detach does; Torch forbids it for views."""
    lif = FusedLeaky(0.9)
    spk, mem = lif(torch.randn(2, 4, requires_grad=True))
    snn.SpikingNeuron.detach(spk, mem)
    assert not spk.requires_grad and not mem.requires_grad


@pytest.mark.parametrize("time_var", [True, False])
def test_bptt_epoch(time_var):
    from snntorch import functional as SF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from snntorch.backprop import BPTT, TBPTT
    random = torch.Generator().manual_seed(3)
    x, y = torch.randn(12, 5, 8, generator=random), torch.randint(0, 3, (12,), generator=random)
    loader = DataLoader(TensorDataset(x if time_var else x[:, 0], y), batch_size=4)

    def epoch(leaky, method, **options):
        net = _net(leaky)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = method(net, loader, optimizer, SF.ce_rate_loss(), device="cpu", **options)
        return loss.detach(), [p.detach().clone() for p in net.parameters()]

    if time_var:
        runs = [(BPTT, dict(time_var=True, time_first=False))]
        for leaky in (snn.Leaky, FusedLeaky):  # the host's own fault: K_flag is never set
            with pytest.raises(UnboundLocalError):
                epoch(leaky, TBPTT, time_var=True, time_first=False, K=2)
    else:
        runs = [(BPTT, dict(num_steps=5, time_var=False)), (TBPTT, dict(num_steps=5, time_var=False, K=2)),
                (TBPTT, dict(num_steps=6, time_var=False, K=3))]
    for method, options in runs:
        theirs, ours = epoch(snn.Leaky, method, **options), epoch(FusedLeaky, method, **options)
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_nir_export():
    nir = pytest.importorskip("nir")
    pytest.importorskip("nirtorch")
    from snntorch.export_nir import export_to_nir
    graphs = []
    for leaky in (snn.Leaky, FusedLeaky):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 20), leaky(beta=0.9 * torch.ones(20), threshold=0.4 * torch.ones(20),
                                                    init_hidden=True))
        graphs.append(export_to_nir(net, torch.randn(2, 8), ignore_dims=[0]))
    theirs, ours = graphs
    assert set(ours.nodes) == set(theirs.nodes) and set(ours.edges) == set(theirs.edges)
    neurons = [n for n in theirs.nodes if isinstance(theirs.nodes[n], nir.LIF)]
    assert neurons
    for name in neurons:
        assert type(ours.nodes[name]) is nir.LIF
        for field in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
            assert (getattr(ours.nodes[name], field) == getattr(theirs.nodes[name], field)).all()


# ---- copies --------------------------------------------------------------------------------------------------------

GRADS = {
    "default": None, "atan": host_surrogate.atan(3.0), "fast_sigmoid": host_surrogate.fast_sigmoid(10),
    "sigmoid": host_surrogate.sigmoid(5), "ste": host_surrogate.straight_through_estimator(),
    "triangular": host_surrogate.triangular(), "heaviside": host_surrogate.heaviside(),
    "spike_rate_escape": host_surrogate.spike_rate_escape(2, 3), "SFS": host_surrogate.SFS(5, 0.1),
    "SSO": host_surrogate.SSO(0.1, 0.3), "triangle": our_surrogate.triangle(),
}


def _step_and_gradient(lif):
    torch.manual_seed(5)
    x = (torch.randn(3, 9) + 0.5).requires_grad_()
    spk, mem = lif(x, torch.ones(3, 9) * 0.3)
    return spk, mem, torch.autograd.grad(spk.sum() + mem.square().sum(), x)[0]


@pytest.mark.parametrize("name", GRADS)
def test_pickle(name):
    lif = FusedLeaky(0.9, spike_grad=GRADS[name], learn_beta=True, reset_mechanism="zero", reset_delay=False)
    before = _step_and_gradient(lif)
    lif.mem = lif.mem.detach()
    stream = io.BytesIO()
    torch.save(lif, stream)
    stream.seek(0)
    for again in (pickle.loads(pickle.dumps(lif)), torch.load(stream, weights_only=False)):
        assert type(again) is FusedLeaky and torch.equal(again.mem, lif.mem) and torch.equal(again.reset, lif.reset)
        assert again.state_function.__self__ is again
        for a, b in zip(before, _step_and_gradient(again)):
            assert torch.equal(a, b)


def test_pickle_of_custom_surrogate_and_of_closures():
    lif = FusedLeaky(0.9, spike_grad=host_surrogate.custom_surrogate(_custom))
    again = pickle.loads(pickle.dumps(lif))
    for a, b in zip(_step_and_gradient(lif), _step_and_gradient(again)):
        assert torch.equal(a, b)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(FusedLeaky(0.9, spike_grad=lambda z: (z > 0).float()))


def _custom(z, grad, out):
    return grad * 0.5


def test_every_host_closure_has_a_recipe():
    factories = [f for f in vars(host_surrogate).values() if callable(f) and not isinstance(f, type)
                 and f.__module__ == host_surrogate.__name__ and f.__name__ not in ("custom_surrogate", "LSO")]
    for factory in [*factories, host_surrogate.LSO]:
        closure = factory()
        wrapped = _host.PicklableClosure.wrap(closure)
        assert isinstance(wrapped, _host.PicklableClosure), factory
        again = pickle.loads(pickle.dumps(wrapped)).closure
        assert again is not closure and again.__code__ is closure.__code__
        held, kept = ([c.cell_contents for c in f.__closure__ or ()] for f in (again, closure))
        assert held == kept


def test_deepcopy():
    lif = FusedLeaky(0.9, learn_threshold=True)
    before = _step_and_gradient(lif)
    lif.mem = lif.mem.detach()
    again = copy.deepcopy(lif)
    assert again.spike_grad is lif.spike_grad  # as the host's deepcopy: functions are shared
    assert again.state_function.__self__ is again and again.threshold is not lif.threshold
    assert torch.equal(again.reset, lif.reset) and torch.equal(again.mem, lif.mem)
    again.threshold.data.fill_(5.0)
    assert _step_and_gradient(again)[0].sum() == 0
    for a, b in zip(before, _step_and_gradient(lif)):
        assert torch.equal(a, b)


def test_state_dict_both_ways():
    options = dict(beta=torch.linspace(0.2, 0.9, 9), learn_beta=True, threshold=0.8, graded_spikes_factor=1.5)
    host, ours = snn.Leaky(**options), FusedLeaky(0.1 * torch.ones(9), learn_beta=True)
    _step_and_gradient(ours)
    assert list(host.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(host.state_dict())
    again = snn.Leaky(0.3 * torch.ones(9), learn_beta=True)
    again.load_state_dict(ours.state_dict())
    for a, b, c in zip(*(_step_and_gradient(n) for n in (host, ours, again))):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_changes_between_calls_are_seen():
    """Options, fixed parameters (in place, replaced, loaded) and instance-level equations may change at any time."""
    host, ours = snn.Leaky(0.9, reset_delay=False), FusedLeaky(0.9, reset_delay=False)
    x, mem = torch.randn(4, 9) + 0.6, torch.randn(4, 9) + 1
    changes = [
        lambda n: n.beta.fill_(0.4), lambda n: setattr(n, "beta", torch.tensor(0.2)),
        lambda n: n.threshold.fill_(0.5), lambda n: setattr(n, "reset_delay", True),
        lambda n: setattr(n, "reset_delay", False), lambda n: setattr(n, "reset_mechanism", "zero"),  # host: half of it
        lambda n: n.reset_mechanism_val.fill_(0), lambda n: n.graded_spikes_factor.fill_(1.9),
        lambda n: setattr(n, "state_function", n._base_zero), lambda n: n.reset_mechanism_val.fill_(1),
        lambda n: setattr(n, "state_quant", torch.round),
        lambda n: setattr(n, "state_quant", False), lambda n: setattr(n, "fire", lambda m: (m > 0.1).float()),
        lambda n: delattr(n, "fire"), lambda n: setattr(n, "inhibition", True),
        lambda n: setattr(n, "inhibition", False), lambda n: setattr(n, "output", True),
        lambda n: setattr(n, "init_hidden", True),
    ]
    seen = []
    for change in [lambda n: None, *changes]:
        change(host)
        change(ours)
        given = () if host.init_hidden else (mem,)
        for a, b in ((host(x, *given), ours(x, *given)), (host(x, *given), ours(x, *given))):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        seen.append(b[1])
    assert sum(not torch.equal(a, b) for a, b in itertools.pairwise(seen)) >= 10  # the changes did change something


# Changes that Torch does not count in `Tensor._version`.
UNCOUNTED = {
    "data.fill_": lambda t, value: t.data.fill_(value),
    "data=": lambda t, value: setattr(t, "data", torch.full_like(t, value)),
    "numpy": lambda t, value: t.numpy().fill(value),
}


@pytest.mark.parametrize("write", UNCOUNTED)
def test_changes_that_torch_does_not_count_are_seen(write):
    x, mem = torch.randn(4, 9) + 0.6, torch.randn(4, 9) + 1

    def two_steps(neuron):  # the second starts with a synaptic current
        neuron(x, mem=mem)
        return neuron(x)

    def outputs(neuron):
        change = UNCOUNTED[write]
        seen = [two_steps(neuron)]
        for name, value in (("beta", 0.3), ("alpha", 0.2), ("graded_spikes_factor", 0.0),
                            ("graded_spikes_factor", 1.0), ("reset_mechanism_val", 1), ("reset_mechanism_val", 2)):
            if hasattr(neuron, name):
                change(getattr(neuron, name), value)
                neuron.reset_mem()
                seen.append(two_steps(neuron))
        return seen

    for ours, theirs, options in ((FusedLeaky, snn.Leaky, {}), (FusedSynaptic, snn.Synaptic, {"alpha": 0.6})):
        found, expected = (outputs(cls(beta=0.9, reset_delay=False, **options)) for cls in (ours, theirs))
        for a, b in zip(found, expected, strict=True):  # a factor of 0 makes the host's potential NaN
            assert all(torch.equal(p.nan_to_num(7.0), q.nan_to_num(7.0)) for p, q in zip(a, b, strict=True))
        assert all(not torch.equal(a[-1], b[-1]) for a, b in itertools.pairwise(expected)), "each change matters"


# ---- snnTorch's list of all neurons --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: FusedLeaky(0.9), lambda: FusedSynaptic(0.5, beta=0.9), lambda: Logged(0.9)],
                         ids=["leaky", "synaptic", "subclass"])
def test_a_deleted_neuron_is_freed_and_its_place_swept(make):
    theirs, ours = snn.Leaky(0.5), make()
    listed = snn.SpikingNeuron.instances
    assert len(listed) == 2 and listed[0] is theirs and listed[1] == ours and isinstance(listed[1], type(ours))
    node = weakref.ref(ours)
    del ours
    gc.collect()
    assert node() is None and len(listed) == 2  # the list does not shrink under a loop of the framework
    for cls in (snn.Leaky, snn.Synaptic):
        cls.reset_hidden()
        cls.detach_hidden()
    again = make()
    assert len(listed) == 2 and listed[0] is theirs and listed[1] == again


@pytest.mark.parametrize("copied", [False, True], ids=["put-aside", "copied"])
def test_a_list_put_aside_outlives_the_neurons_on_it(copied, monkeypatch):
    """Programs, and tests, swap the framework's list; what died meanwhile must not break its loops afterwards."""
    listed = snn.SpikingNeuron.instances
    ours, again = FusedLeaky(0.5), FusedLeaky(0.6)
    aside = list(listed) if copied else listed
    with monkeypatch.context() as patch:
        patch.setattr(snn.SpikingNeuron, "instances", [])
        del ours
        gc.collect()
    snn.SpikingNeuron.instances = aside
    again(torch.ones(2, 3))
    utils.reset(nn.Sequential(again))
    assert again.mem.shape == (2, 3) and not again.mem.any() and aside[1] == again and aside[0] != again


def test_a_constructor_that_fails_leaves_nothing_behind():
    with pytest.raises(ValueError, match="reset_mechanism"):
        FusedLeaky(0.9, reset_mechanism="none of these")
    gc.collect()
    alive = FusedLeaky(0.9)
    assert len(snn.SpikingNeuron.instances) == 1 and snn.SpikingNeuron.instances[0] == alive


def test_constructors_have_the_hosts_signature():
    assert inspect.signature(FusedLeaky) == inspect.signature(snn.Leaky)
    assert inspect.signature(FusedSynaptic) == inspect.signature(snn.Synaptic)


# ---- calls ---------------------------------------------------------------------------------------------------------


def test_mem_with_init_hidden_is_the_hosts_error():
    host, ours = snn.Leaky(0.9, init_hidden=True), FusedLeaky(0.9, init_hidden=True)
    x = torch.ones(2, 3)
    with pytest.raises(TypeError) as expected:
        host(x, x)
    with pytest.raises(TypeError) as single:
        ours(x, x)
    fresh = FusedLeaky(0.9, init_hidden=True)
    with pytest.raises(TypeError) as whole:
        fresh.multi_step(x, x[0])
    assert str(expected.value) == str(single.value) == str(whole.value) and fresh.mem.numel() == 0


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.tensor(1.0), [1.0, 2.0]], ids=["T0", "rank0", "list"])
def test_multi_step_refuses(x):
    lif = FusedLeaky(0.9)
    with pytest.raises(MemextError, match="T, N"):
        lif.multi_step(x)
    assert lif.mem.numel() == 0


@pytest.mark.parametrize("make, names", [(lambda: FusedLeaky(0.9), ["mem"]),
                                         (lambda: FusedSynaptic(0.5, beta=0.9), ["syn", "mem"])],
                         ids=["leaky", "synaptic"])
def test_multi_step_refuses_a_wrong_start(make, names):
    lif, x = make(), torch.ones(4, 2, 3)
    for name in names:
        with pytest.raises(MemextError, match=rf"multi_step: {name} is str; a tensor"):
            lif.multi_step(x, **{name: "a"})
        for wrong in (torch.ones(5, 3), torch.ones(3), torch.ones(4, 2, 3), torch.tensor(1.0)):
            with pytest.raises(MemextError) as refusal:
                lif.multi_step(x, **{name: wrong})
            assert f"{name} has shape {tuple(wrong.shape)}" in str(refusal.value) and "(2, 3)" in str(refusal.value)
    assert lif.mem.numel() == 0
    empty = lif.reset_mem()  # before the first step the host returns empty states: at rest
    out = lif.multi_step(x, *(empty if isinstance(empty, tuple) else (empty,)))
    assert all(torch.equal(a, b) for a, b in zip(out, make().multi_step(x), strict=True))
    larger = lif.reset_mem()  # zeros of that batch; the next one may be smaller, as the last of an epoch is
    out = lif.multi_step(x[:, :1], *(larger if isinstance(larger, tuple) else (larger,)))
    assert all(torch.equal(a, b) for a, b in zip(out, make().multi_step(x[:, :1]), strict=True))


def test_returned_states_are_what_backward_needs():
    """A documented difference: the host does not keep the potential when beta is fixed."""
    def run(lif, change):
        spk, mem = lif(torch.ones(2, 3, requires_grad=True), torch.ones(2, 3))
        (change(mem) + spk).sum().backward()

    run(snn.Leaky(0.9), lambda mem: mem.mul_(0.5))
    run(FusedLeaky(0.9), lambda mem: mem * 0.5)
    with pytest.raises(RuntimeError, match="inplace operation"):
        run(FusedLeaky(0.9), lambda mem: mem.mul_(0.5))


def test_changing_shapes_start_at_rest():
    host, ours = snn.Leaky(0.9, init_hidden=True, output=True), FusedLeaky(0.9, init_hidden=True, output=True)
    for shape in [(4, 9), (4, 9), (2, 9), (9,), (2, 3, 9), (0, 9), (1, 9)]:  # the last batch of an epoch is smaller
        x = torch.randn(shape) + 0.5
        a, b = host(x), ours(x)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[1].shape == b[1].shape
        assert torch.equal(host.reset, ours.reset)


def test_reset_is_not_kept_by_multi_step():
    lif = FusedLeaky(0.9)
    assert not hasattr(lif, "reset") and not hasattr(snn.Leaky(0.9), "reset")
    lif(torch.ones(2, 3))
    assert lif.reset.shape == (2, 3)
    lif.multi_step(torch.ones(4, 2, 3))
    assert not hasattr(lif, "reset")


def test_reset_holds_no_graph():
    lif = FusedLeaky(0.9)
    _, mem = lif(torch.ones(2, 3, requires_grad=True))
    lif(torch.ones(2, 3, requires_grad=True), mem)
    held = lif.__dict__["_memext_before"]
    assert torch.equal(held, mem) and not held.requires_grad and not lif.reset.requires_grad


def test_one_neuron_many_times_a_step_and_graph_through_hidden_state():
    def run(leaky):
        torch.manual_seed(0)
        lif, x = leaky(0.8, init_hidden=True, output=True), torch.randn(4, 2, 7, requires_grad=True)
        total = 0.0
        for x_t in x:
            spk, _ = lif(x_t)
            spk, mem = lif(x_t * 0.5 + spk)
            total = total + (spk * x_t.detach()).sum() + mem.square().sum()
        return total.detach(), torch.autograd.grad(total, x)[0]
    torch.testing.assert_close(run(FusedLeaky), run(snn.Leaky), **CLOSE)


def test_inference_and_training_mix():
    """A clamped beta computed under inference_mode must not be kept for training."""
    lif = FusedLeaky(0.9)
    with torch.inference_mode():
        lif(torch.ones(2, 3), torch.zeros(2, 3))
    lif.mem = torch.zeros(2, 3)
    x = torch.ones(2, 3, requires_grad=True)
    lif(x)[1].sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


def test_jit_trace_records_torch_operators():
    lif = FusedLeaky(0.9, surrogate_disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x, m: lif(x, m), (torch.ones(2, 3), torch.zeros(2, 3)))
    x, mem = torch.randn(2, 3) + 1, torch.randn(2, 3) + 1
    for a, b in zip(traced(x, mem), snn.Leaky(0.9)(x, mem)):
        assert torch.equal(a, b)


def test_compile_in_one_graph():
    host, ours = snn.Leaky(0.9), FusedLeaky(0.9)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    x, mem = torch.randn(2, 3) + 1, torch.randn(2, 3) + 1
    for a, b in zip(compiled(x, mem), host(x, mem)):
        assert torch.equal(a, b)


# ---- overrides -----------------------------------------------------------------------------------------------------


class Quiet(FusedLeaky):
    """Fires on twice the threshold: the kernels must not be used."""

    def fire(self, mem):
        return self.spike_grad(mem - 2 * self.threshold)


class QuietHost(snn.Leaky):
    fire = Quiet.fire


class Logged(FusedLeaky):
    """Calls on the fused forward, so it keeps it; multi_step must still go through this forward."""

    calls = 0

    def forward(self, input_, mem=None):
        Logged.calls += 1
        return super().forward(input_, mem)


class Unchanged(snn.Leaky):
    def extra(self):
        return self.fire(self.mem)


def test_overrides():
    assert overrides(snn.Leaky, snn.Leaky) == [] and overrides(Unchanged, snn.Leaky) == []
    assert overrides(QuietHost, snn.Leaky) == ["fire"] and overrides(FusedLeaky, snn.Leaky) == ["forward"]
    assert "forward" in overrides(snn.DeltaLeaky if hasattr(snn, "DeltaLeaky") else Logged, snn.Leaky)


def test_subclasses_with_their_own_equations_take_the_hosts_path():
    ours, host = Quiet(0.9), QuietHost(0.9)
    own = FusedLeaky(0.9)
    own.fire = lambda mem: mem
    assert "fire" in why_host_path(ours) and "fire" in why_host_path(own)
    x = torch.randn(12, 4, 9) + 0.7
    got, got_mem = ours.multi_step(x)
    for x_t in x:
        spk, mem = host(x_t)
    assert torch.equal(got[-1], spk) and torch.equal(got_mem, mem)
    assert not torch.equal(got, FusedLeaky(0.9).multi_step(x)[0])


def test_multi_step_respects_a_forward_of_the_user():
    x = torch.randn(5, 4, 9) + 0.7
    Logged.calls = 0
    got = Logged(0.9, init_hidden=True).multi_step(x, record=True)
    assert Logged.calls == 5
    for a, b in zip(got, FusedLeaky(0.9).multi_step(x, record=True)):
        assert torch.equal(a, b)


def test_tested_versions():
    assert _host.why_untested() is None or snn.__version__ not in _host.TESTED
