"""Entering snnTorch models and leaving them. What both adapters share is tested in tests/sj/test_retrofit.py."""
import copy
import gc
import io
import pickle
import weakref

import pytest
import snntorch as snn
import torch
from snntorch import SpikingNeuron, backprop, surrogate, utils
from snntorch import functional as SF
from snntorch.surrogate import fast_sigmoid
from torch import nn
from torch.nn.utils import parametrize

from shared_core import _entering
from shared_core.errors import MemextError
from shared_core.retrofit import Plan
from snntorch_memext import report, restore, retrofit, substitute
from snntorch_memext import retrofit as retrofit_  # the function: `snntorch_memext.retrofit` is it, not the module
from snntorch_memext.neurons import FusedLeaky


@pytest.fixture(autouse=True)
def own_instances(monkeypatch):
    """The framework keeps all neurons of the process: every test starts with a list of its own."""
    monkeypatch.setattr(SpikingNeuron, "instances", [])


class Harmless(snn.Leaky):
    def label(self):
        return "mine"


class OwnMaths(snn.Leaky):
    def fire(self, mem):
        return (mem > 0.5).float()


def leaky(**kwargs):
    return snn.Leaky(**{**dict(beta=0.85, threshold=0.6, spike_grad=fast_sigmoid(slope=5)), **kwargs})


class Loop(nn.Module):
    """Explicit state, the loop inside forward; batch norm with statistics per step."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.lif1 = leaky(reset_mechanism="zero")
        self.fc, self.lif2 = nn.Linear(4 * 6 * 6, 5), leaky(learn_beta=True, learn_threshold=True, reset_delay=False)

    def forward(self, x_seq):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        out = []
        for x in x_seq:
            spk, mem1 = self.lif1(self.norm(self.conv(x)), mem1)
            spk, mem2 = self.lif2(self.fc(spk.flatten(1)), mem2)
            out.append(torch.stack((spk, mem2)))
        return torch.stack(out)


class Hidden(nn.Sequential):
    """nn.Sequential with hidden state, as in the framework's tutorials."""

    def __init__(self):
        super().__init__(nn.Linear(6, 5), leaky(init_hidden=True), nn.Linear(5, 4),
                         leaky(init_hidden=True, output=True, learn_beta=True, threshold=0.1))

    def forward(self, x_seq):
        utils.reset(self)
        return torch.stack([torch.stack(super(Hidden, self).forward(x)) for x in x_seq])


class Subclassed(Hidden):
    def __init__(self):
        super().__init__()
        self[1] = Harmless(beta=0.9, threshold=0.6, init_hidden=True)


NETS = {build.__name__: (build, shape, 2) for build, shape in (
    (Loop, (5, 2, 2, 8, 8)), (Hidden, (5, 2, 6)), (Subclassed, (5, 2, 6)))}


@pytest.fixture(params=NETS)
def case(request):
    build, shape, count = NETS[request.param]
    torch.manual_seed(0)
    return build(), 2 * torch.randn(shape), count


def step(net, x):
    net.zero_grad()
    for module in net.modules():
        if isinstance(module, snn.Leaky):
            module.reset_mem()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), [x.grad, *(p.grad for p in net.parameters())]


def kept(net):
    return ([(name, id(m), m.training) for name, m in net.named_modules(remove_duplicate=False)],
            [(name, id(p), p.dtype, p.device, p.requires_grad) for name, p in net.named_parameters()],
            list(net.state_dict()))


def classes(net):
    return [type(m) for m in net.modules()]


def close(ours, theirs):
    """1e-5, norm-relative: other order of the same float32 sums over five steps (see DESIGN's exactness contract)."""
    return all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(ours, theirs, strict=True))


# ---- the contract ----

def test_a_retrofit_changes_the_classes_and_nothing_else(case):
    net, x, count = case
    before, own, (y, grads) = kept(net), classes(net), step(net, x)
    listed = list(SpikingNeuron.instances)
    attributes = [set(vars(m)) for m in net.modules()]
    assert retrofit(net, "neuron") is net
    assert kept(net) == before
    assert len(report(net).changed) == count == sum(isinstance(m, FusedLeaky) for m in net.modules())
    assert all(isinstance(m, c) for m, c in zip(net.modules(), own, strict=True))
    y2, grads2 = step(net, x)
    spikes = y.select(1, 0)
    assert 0 < spikes.count_nonzero() < spikes.numel(), "some fire, some do not"
    assert torch.equal(y, y2) and close(grads2, grads)
    assert restore(net) is net
    assert kept(net) == before and classes(net) == own
    assert [set(vars(m)) for m in net.modules()] == attributes
    assert [id(entry) for entry in SpikingNeuron.instances] == [id(entry) for entry in listed]
    assert torch.equal(step(net, x)[0], y)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=["deepcopy", "pickle"])
def test_copies_are_ours_too_and_can_be_restored(how):
    # Without hidden state: the framework's utils.reset does not reach copies, ours or its own.
    net, x = nn.ModuleList((leaky(), Harmless(beta=0.9, threshold=0.3))), 2 * torch.randn(3, 6)
    own, y = classes(net), [lif(x, torch.zeros(3, 6)) for lif in copy.deepcopy(net)]
    other = how(retrofit(net))
    assert classes(other) == classes(net) != own
    assert report(other).to_dict() == report(net).to_dict()
    for lif, (spk, mem) in zip(other, y, strict=True):
        spk2, mem2 = lif(x, torch.zeros(3, 6))
        assert torch.equal(spk, spk2) and torch.equal(mem, mem2) and spk.any()
    assert classes(restore(other)) == own
    assert classes(net) != own, "the original is not touched"


def test_checkpoints_of_either_load_into_the_other(case):
    net, x, _ = case
    plain = type(net)()
    retrofit(net).load_state_dict(plain.state_dict())
    assert torch.equal(step(net, x)[0], step(plain, x)[0])
    plain.load_state_dict(net.state_dict())


def test_double_eval_and_hooks_are_kept():
    net, seen = nn.Sequential(nn.Linear(6, 5), leaky()).double().eval(), []
    net[1].register_forward_hook(lambda m, i, o: seen.append(type(m)))
    x = 2 * torch.randn(3, 6, dtype=torch.float64)
    spk, mem = net(x)
    net[1].reset_mem()
    spk2, mem2 = retrofit(net)(x)
    assert torch.equal(spk, spk2) and torch.equal(mem, mem2) and mem2.dtype == torch.float64 and not net.training
    assert seen == [snn.Leaky, FusedLeaky]


# ---- the framework's list of all neurons ----

@pytest.mark.parametrize("make", ["retrofit", "substitute"])
def test_a_deleted_net_is_freed(make):
    if make == "substitute":
        with substitute("neuron"):
            net = Hidden()
    else:
        net = retrofit(Hidden())
    neurons = [weakref.ref(m) for m in net.modules() if isinstance(m, snn.Leaky)]
    assert len(neurons) == 2 and len(SpikingNeuron.instances) == 2
    net(torch.randn(3, 2, 6))
    del net
    gc.collect()
    assert [ref() for ref in neurons] == [None, None]
    snn.Leaky.reset_hidden()  # passes over the places of the dead
    snn.Leaky.detach_hidden()
    live = retrofit(Hidden())
    assert len(SpikingNeuron.instances) == 2, "their places were swept"
    assert isinstance(SpikingNeuron.instances[0], FusedLeaky) and live[1] == SpikingNeuron.instances[0]


def test_without_us_the_framework_keeps_it():
    """What the test above would see if nothing were done; also after restore, which gives back what was."""
    net = restore(retrofit(Hidden()))
    node = weakref.ref(net[1])
    del net
    gc.collect()
    assert node() is not None


def test_a_net_may_die_while_the_framework_runs_through_its_list():
    net, other = retrofit(Hidden()), retrofit(Hidden())
    other(torch.randn(2, 2, 6))
    gc.disable()
    del net
    try:
        for index in range(len(SpikingNeuron.instances)):  # as Leaky.reset_hidden does
            if index == 1:
                gc.collect()
            if isinstance(SpikingNeuron.instances[index], snn.Leaky):
                SpikingNeuron.instances[index].mem.detach_()
    finally:
        gc.enable()
    assert len(SpikingNeuron.instances) == 4


def test_utils_reset_resets_a_retrofitted_net():
    net = retrofit(Hidden())
    net(torch.randn(3, 2, 6))
    assert net[1].mem.any() and net[1].mem.grad_fn is not None
    utils.reset(net)
    assert not net[1].mem.any() and net[1].mem.grad_fn is None and net[1].mem.shape == (2, 5)


def test_bptt_trains_a_retrofitted_net_as_it_trains_the_frameworks():
    def train(change):
        torch.manual_seed(0)
        net = change(nn.Sequential(nn.Linear(6, 5), leaky(init_hidden=True), nn.Linear(5, 4),
                                   leaky(init_hidden=True, output=True)))
        data = [(2 * torch.randn(4, 6, 6), torch.arange(6) % 4) for _ in range(2)]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss = backprop.BPTT(net, data, optimizer, SF.ce_rate_loss(), time_var=True, time_first=True)
        return loss.item(), [p.detach() for p in net.parameters()]

    loss, parameters = train(retrofit)
    expected, expected_parameters = train(lambda net: net)
    assert abs(loss - expected) <= 1e-6 * abs(expected) and close(parameters, expected_parameters)


# ---- subclasses, parametrizations, what is left ----

def test_a_harmless_subclass_keeps_what_it_adds():
    net = retrofit(Subclassed())
    assert net[1].label() == "mine" and isinstance(net[1], FusedLeaky)
    assert type(pickle.loads(pickle.dumps(net[1]))) is type(net[1])


@pytest.mark.parametrize("make, reason", [
    (lambda: OwnMaths(beta=0.9), "it overrides fire of Leaky"),
    (lambda: snn.Alpha(alpha=0.9, beta=0.8),
     "there is no memory-efficient version of it; there is one of Leaky, Synaptic; leave it, or add one"),
    (lambda: snn.LeakyParallel(2, 2), "there is no memory-efficient version"),
], ids=["OwnMaths", "Alpha", "LeakyParallel"])
def test_what_cannot_be_changed_is_left_and_reported(make, reason):
    net = nn.Sequential(leaky(), make())
    own = type(net[1])
    retrofit(net)
    (name, kind, why), = report(net).skipped
    assert (name, kind) == ("1", own.__name__) and reason in why and type(net[1]) is own


@pytest.mark.parametrize("make", [
    lambda: snn.RLeaky(beta=0.9, all_to_all=False), lambda: snn.RSynaptic(alpha=0.9, beta=0.8, all_to_all=False)],
    ids=["RLeaky", "RSynaptic"])
def test_a_part_of_a_neuron_is_not_taken_for_one(make):
    net = retrofit(nn.Sequential(leaky(), make()))
    assert type(net[1].recurrent).__name__ == "RecurrentOneToOne"
    assert [name for name, _, _ in report(net).skipped] == ["1"]


# ---- beside the other adapter ----

def held_weakly(node) -> bool:
    entry = SpikingNeuron.instances[0]
    return entry is not node and entry == node


def test_neurons_of_both_frameworks_are_kept_apart():
    sj = pytest.importorskip("sj_memext")
    from spikingjelly.activation_based import neuron

    net = nn.Sequential(leaky(), neuron.LIFNode(step_mode="m"), leaky(), neuron.LIFNode(step_mode="m"))
    skipped, their_skipped = ("2", "Leaky", "named in skip"), ("3", "LIFNode", "named in skip")
    ours, theirs = ("0", "Leaky", "FusedLeaky"), ("1", "LIFNode", "FusedLIFNode")
    own = classes(net)
    sj.retrofit(retrofit(net, skip=["2"]), skip=["3"])
    assert (report(net).changed, report(net).skipped) == ([ours], [skipped])
    assert (sj.report(net).changed, sj.report(net).skipped) == ([theirs], [their_skipped])
    assert held_weakly(net[0])
    sj.restore(net)
    assert [type(m) for m in net][:2] == [FusedLeaky, neuron.LIFNode]
    assert (report(net).changed, report(net).skipped) == ([ours], [skipped])
    assert held_weakly(net[0]), "nobody else calls what this adapter must do"
    with pytest.raises(MemextError, match=r"^sj_memext\.restore: nothing in this Sequential was retrofitted by sj_"):
        sj.restore(net)
    sj.retrofit(net, skip=["3"])
    restore(net)
    assert [type(m) for m in net][:2] == [snn.Leaky, neuron.FusedLIFNode]
    assert (sj.report(net).changed, sj.report(net).skipped) == ([theirs], [their_skipped])
    assert SpikingNeuron.instances[0] is net[0]
    with pytest.raises(MemextError, match=r"^snntorch_memext\.report: this Sequential was not retrofitted"):
        report(net)
    assert classes(sj.restore(net)) == own and not any("memext" in name for m in net.modules() for name in vars(m))


def test_what_the_other_adapter_did_on_top_is_not_torn_off(monkeypatch):
    sj = pytest.importorskip("sj_memext")

    class Watched(snn.Leaky):
        pass

    def watch(framework, net):
        return Plan([_entering.Change("0", net[0], Watched)])

    monkeypatch.setitem(sj.retrofit.__self__.methods, "watch", watch)
    net = sj.retrofit(retrofit(nn.Sequential(leaky())), "watch")
    with pytest.raises(MemextError, match="'0' cannot be restored: the adapter of spikingjelly changed it afterwards"):
        restore(net)
    assert type(restore(sj.restore(net))[0]) is snn.Leaky


class Half(nn.Module):
    def forward(self, beta):
        return beta / 2


def test_a_parametrized_neuron_stays_parametrized():
    net, x = nn.Sequential(leaky(learn_beta=True)), 2 * torch.randn(3, 4)
    parametrize.register_parametrization(net[0], "beta", Half())
    y = net[0](x)
    net[0].reset_mem()
    retrofit(net)
    assert isinstance(net[0], FusedLeaky) and parametrize.is_parametrized(net[0], "beta")
    assert all(torch.equal(a, b) for a, b in zip(net[0](x), y, strict=True))
    parametrize.remove_parametrizations(restore(net)[0], "beta")
    assert type(net[0]) is snn.Leaky


def test_a_failure_half_way_leaves_the_model_and_the_list_as_they_were(monkeypatch):
    net = Hidden()
    own, listed, assign, calls = classes(net), list(SpikingNeuron.instances), _entering._assign_class, []

    def fails_once(module, cls):
        calls.append(cls)
        if len(calls) == 2:
            raise TypeError("no")
        assign(module, cls)

    monkeypatch.setattr(_entering, "_assign_class", fails_once)
    with pytest.raises(MemextError, match=r"snntorch_memext\.retrofit: changing '3' failed"):
        retrofit(net)
    assert classes(net) == own
    assert [id(entry) for entry in SpikingNeuron.instances] == [id(entry) for entry in listed]


def test_a_failure_after_the_last_change_is_undone_as_well(monkeypatch):
    net = Hidden()
    own = classes(net)

    def broken(neurons):
        raise RuntimeError("list is locked")

    framework = retrofit_.__self__.framework
    monkeypatch.setattr(retrofit_.__self__, "framework", type(framework)(**{**vars(framework), "joined": broken}))
    with pytest.raises(MemextError, match=r"the framework's own records.* failed \(RuntimeError: list is locked"):
        retrofit(net)
    assert classes(net) == own and isinstance(SpikingNeuron.instances[0], snn.Leaky)


def test_a_foreign_net_says_what_was_found():
    with pytest.raises(MemextError, match="no neuron of the framework, only"):
        retrofit(nn.Linear(1, 1))


# ---- substitute ----

def test_neurons_built_inside_are_ours_and_the_framework_is_untouched_outside():
    before, Leaky = dict(vars(snn.Leaky)), snn.Leaky
    with substitute("neuron") as seen:
        nodes = [Leaky(beta=0.5), Harmless(beta=0.5), OwnMaths(beta=0.5), snn.Alpha(alpha=0.9, beta=0.5)]
    assert [type(m).__name__ for m in nodes] == ["FusedLeaky", "FusedLeakyOfHarmless", "OwnMaths", "Alpha"]
    assert [kind for _, kind, _ in seen.changed] == ["Leaky", "Harmless"]
    assert dict(vars(Leaky)) == before and type(Leaky(beta=0.5)) is Leaky
    assert type(pickle.loads(pickle.dumps(nodes[0]))) is FusedLeaky
    assert type(restore(nn.Sequential(nodes[0]))[0]) is Leaky


def test_surrogates_and_neurons_are_in_the_frameworks_namespaces():
    assert snn.FusedLeaky is FusedLeaky
    assert callable(surrogate.rectangle()) and callable(surrogate.triangle()) and callable(surrogate.arctan())
    file = io.BytesIO()
    torch.save(retrofit(Hidden()).state_dict(), file)
