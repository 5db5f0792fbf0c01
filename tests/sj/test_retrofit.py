"""Entering SpikingJelly models and leaving them: what stays, what changes, what is refused."""
import copy
import gc
import io
import multiprocessing
import pickle
import threading
import weakref

import pytest
import torch
import torch.distributed
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.neuron import LIFNode  # taken before any substitution
from torch import nn
from torch.nn.utils import parametrize

import sj_memext
from shared_core import _entering
from shared_core.errors import MemextError
from shared_core.retrofit import Plan
from sj_memext import report, restore, retrofit, substitute
from sj_memext.neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode

FUSED = {neuron.IFNode: FusedIFNode, neuron.LIFNode: FusedLIFNode, neuron.ParametricLIFNode: FusedParametricLIFNode}


class Harmless(LIFNode):
    """Adds, and changes no equation."""

    def __init__(self, label="a", **kwargs):
        super().__init__(**kwargs)
        self.label = label

    def double_tau(self):
        return 2 * self.tau


class OwnMaths(LIFNode):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        return (inputs[0],), states


class OldMaths(LIFNode):
    """Written for SpikingJelly 0.0.0.0.14; version 2 ignores the method without a word."""

    def neuronal_charge(self, x):
        self.v = self.v.detach() + x


class OwnPickle(LIFNode):
    def __reduce__(self):
        return OwnPickle, ()


class Block(nn.Module):
    """A residual block with arbitrary Python in forward, one neuron used twice."""

    def __init__(self, make, features):
        super().__init__()
        self.a, self.b, self.lif = nn.Linear(features, features), nn.Linear(features, features), make()

    def forward(self, x):
        return x + self.lif(self.b(self.lif(self.a(x))))


def lif(**kwargs):
    return LIFNode(**{**dict(tau=1.7, v_threshold=0.6, v_reset=-0.3, surrogate_function=surrogate.ATan(),
                             step_mode="m"), **kwargs})


def conv():
    # No bias before the norm: its gradient is zero but for rounding.
    return nn.Sequential(layer.Conv2d(2, 4, 3, bias=False, step_mode="m"), layer.BatchNorm2d(4, step_mode="m"), lif(),
                         layer.Conv2d(4, 3, 3, step_mode="m"), neuron.IFNode(v_threshold=0.4, step_mode="m"))


def residual():
    return nn.Sequential(nn.Linear(6, 5), neuron.ParametricLIFNode(init_tau=1.9, v_threshold=0.5, step_mode="m"),
                         Block(lif, 5))


def shared():
    node = lif(detach_reset=True, v_reset=None)
    return nn.Sequential(nn.Linear(6, 6), node, nn.Linear(6, 6), node)


def alone():
    return lif(decay_input=False)


def subclassed():
    return nn.Sequential(nn.Linear(6, 5), Harmless(label="b", tau=1.5, v_threshold=0.4, step_mode="m"))


NETS = {build.__name__: (build, shape, count) for build, shape, count in (
    (conv, (5, 2, 2, 8, 8), 2), (residual, (5, 2, 6), 2), (shared, (5, 2, 6), 1), (alone, (5, 2, 6), 1),
    (subclassed, (5, 2, 6), 1))}


@pytest.fixture(params=NETS)
def case(request):
    """(net, input, number of neuron objects); inputs strong enough for the neurons to fire."""
    build, shape, count = NETS[request.param]
    torch.manual_seed(0)
    return build(), 2 * torch.randn(shape), count


def step(net, x):
    """Output, input gradient and parameter gradients of one training step from rest."""
    functional.reset_net(net)
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    functional.reset_net(net)
    return y.detach(), [x.grad, *(p.grad for p in net.parameters())]


def kept(net):
    """Everything about a net that a retrofit must not change."""
    return ([(name, id(m), m.training) for name, m in net.named_modules(remove_duplicate=False)],
            [(name, id(p), p.dtype, p.device, p.requires_grad) for name, p in net.named_parameters()],
            [(name, id(b)) for name, b in net.named_buffers()], list(net.state_dict()))


def classes(net):
    return [type(m) for m in net.modules()]


def close(ours, theirs):
    """1e-5, norm-relative: other order of the same float32 sums over five steps (see DESIGN's exactness contract)."""
    return all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(ours, theirs, strict=True))


# ---- the contract ----

def test_a_retrofit_changes_the_classes_and_nothing_else(case):
    net, x, count = case
    net.train()  # SpikingJelly's default surrogate is one object for all nets, which another test may have put in eval
    before, own, (y, grads) = kept(net), classes(net), step(net, x)
    net.eval()
    net.train()
    assert retrofit(net, "neuron") is net
    assert kept(net) == before
    assert len(report(net).changed) == count == sum(isinstance(m, tuple(FUSED.values())) for m in net.modules())
    assert all(isinstance(m, c) for m, c in zip(net.modules(), own, strict=True))
    y2, grads2 = step(net, x)
    assert 0 < y.count_nonzero() < y.numel(), "some fire, some do not"
    assert torch.equal(y, y2) and close(grads2, grads)
    assert restore(net) is net
    assert kept(net) == before and classes(net) == own
    assert not any("memext" in name for m in net.modules() for name in vars(m))
    assert torch.equal(step(net, x)[0], y)


def test_the_fused_path_really_runs(monkeypatch):
    net, calls = retrofit(conv()), []
    for cls in (FusedIFNode, FusedLIFNode):
        monkeypatch.setattr(cls, "_steps", lambda self, *a, f=cls._steps, **k: calls.append(1) or f(self, *a, **k))
    net(torch.randn(3, 1, 2, 8, 8))
    assert len(calls) == 2


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)),
                                 lambda net: torch.load(_saved(net), weights_only=False)],
                         ids=["deepcopy", "pickle", "torch.save"])
def test_copies_are_ours_too_and_can_be_restored(case, how):
    net, x, _ = case
    own, (y, _) = classes(net), step(net, x)
    other = how(retrofit(net))
    assert classes(other) == classes(net) != own
    assert report(other).to_dict() == report(net).to_dict()
    assert torch.equal(step(other, x)[0], y)
    assert classes(restore(other)) == own
    assert classes(net) != own, "the original is not touched"


def _saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return file


def test_checkpoints_of_either_load_into_the_other(case):
    net, x, _ = case
    plain = copy.deepcopy(net)
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(1.25)
    retrofit(net).load_state_dict(plain.state_dict())
    assert torch.equal(step(net, x)[0], step(plain, x)[0])
    plain.load_state_dict(retrofit(net).state_dict())


def test_hooks_and_reset_net_go_on_working():
    net, seen = shared(), []
    net[1].register_forward_hook(lambda m, i, o: seen.append(type(m)))
    functional.reset_net(net)
    retrofit(net)(torch.randn(4, 2, 6))
    assert seen == [FusedLIFNode, FusedLIFNode]
    assert isinstance(net[1].v, torch.Tensor)
    functional.reset_net(net)
    assert net[1].v == 0.0
    functional.set_step_mode(net, "s")
    assert net[1].step_mode == "s"


def test_the_reset_cache_of_every_module_is_forgotten():
    net = residual()
    for module in (net, net[2]):
        functional.reset_net(module)
    cache = functional.net_config._RESET_MODULE_CACHE
    assert net in cache and net[2] in cache
    retrofit(net)
    assert net not in cache and net[2] not in cache


def test_state_dtype_device_and_mode_are_kept():
    net = conv().double().eval()
    x = torch.randn(3, 1, 2, 8, 8, dtype=torch.float64)
    y = net(x)
    state = net[2].v
    retrofit(net)
    assert net[2].v is state and not net.training
    functional.reset_net(net)
    assert torch.equal(net(x), y) and y.dtype == torch.float64


def _in_child(net, x, queue):
    queue.put((type(net[1]).__name__, type(net[1]).__mro__[2].__name__, net(x).sum().item()))


def test_a_retrofitted_net_reaches_a_spawned_process():
    torch.manual_seed(0)
    net, x = retrofit(subclassed()), 2 * torch.randn(5, 2, 6)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(net, x, queue))
    child.start()
    name, base, total = queue.get(timeout=120)
    child.join(30)
    assert (name, base) == ("FusedLIFNodeOfHarmless", "FusedLIFNode")
    assert total == net(x).sum().item()


# ---- subclasses, parametrizations, wrappers ----

def test_a_harmless_subclass_keeps_what_it_adds():
    net = retrofit(subclassed())
    node = net[1]
    assert isinstance(node, Harmless) and isinstance(node, FusedLIFNode)
    assert node.double_tau() == 3.0 and node.label == "b"
    assert type(pickle.loads(pickle.dumps(node))) is type(node), "one class per pair, also after pickling"


@pytest.mark.parametrize("cls, reason", [(OwnMaths, "overrides single_step_functional_forward of LIFNode"),
                                         (OldMaths, "overrides neuronal_charge of LIFNode"),
                                         (OwnPickle, "defines how it is pickled"),
                                         (neuron.EIFNode, "there is no memory-efficient version of it; there is one of "
                                                          "HalfThresholdIFNode, IFNode, KLIFNode, LIFNode, "
                                                          "ParametricLIFNode, SLTTLIFNode; "
                                                          "leave it, or add one (docs/add_a_neuron.md)"),
                                         (neuron.PSN, "there is no memory-efficient version")])
def test_what_cannot_be_changed_is_left_and_reported(cls, reason):
    net = nn.Sequential(nn.Linear(6, 6), lif(), cls(T=4) if cls is neuron.PSN else cls(step_mode="m"))
    retrofit(net)
    (name, kind, why), = report(net).skipped
    assert (name, kind) == ("2", cls.__name__) and reason in why
    assert type(net[2]) is cls
    assert f"2: {cls.__name__} left: {why}" in str(report(net)) and "1: LIFNode -> FusedLIFNode" in str(report(net))


def test_a_method_replaced_on_one_object_is_respected():
    net = nn.Sequential(lif(), lif())
    net[0].single_step_functional_forward = lambda inputs, states: ((inputs[0],), states)
    retrofit(net)
    assert report(net).skipped == [("0", "LIFNode", "single_step_functional_forward was replaced on this object, and "
                                    "would run instead of ours")]


class Half(nn.Module):
    def forward(self, w):
        return w / 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrized_neuron_stays_parametrized(when):
    torch.manual_seed(0)
    net, x = nn.Sequential(neuron.ParametricLIFNode(init_tau=1.9, step_mode="m")), 2 * torch.randn(5, 2, 6)
    w = net[0].w.item()
    if when == "after":
        retrofit(net)
    parametrize.register_parametrization(net[0], "w", Half())
    plain = copy.deepcopy(net) if when == "before" else None
    if when == "before":
        retrofit(net)
    assert isinstance(net[0], FusedParametricLIFNode) and parametrize.is_parametrized(net[0], "w")
    assert net[0].w.item() == w / 2
    if plain is not None:
        assert torch.equal(step(net, x)[0], step(plain, x)[0])
        assert isinstance(copy.deepcopy(net)[0], FusedParametricLIFNode)
    restore(net)
    assert not isinstance(net[0], FusedParametricLIFNode) and net[0].w.item() == w / 2
    parametrize.remove_parametrizations(net[0], "w")
    assert type(net[0]) is neuron.ParametricLIFNode


def test_a_parametrization_may_be_removed_while_the_neuron_is_ours():
    net = nn.Sequential(neuron.ParametricLIFNode(step_mode="m"))
    parametrize.register_parametrization(net[0], "w", Half())
    parametrize.remove_parametrizations(retrofit(net)[0], "w")
    assert type(net[0]) is FusedParametricLIFNode
    assert type(restore(net)[0]) is neuron.ParametricLIFNode


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("order", ["retrofit-then-wrap", "wrap-then-retrofit"])
def test_distributed_data_parallel(process_group, order):
    torch.manual_seed(0)
    net, x = residual(), 2 * torch.randn(5, 2, 6)
    y, grads = step(net, x)
    if order == "retrofit-then-wrap":
        net = nn.parallel.DistributedDataParallel(retrofit(net))
    else:
        net = retrofit(nn.parallel.DistributedDataParallel(net))
    assert [name for name, _, _ in report(net).changed] == ["1", "2.lif"], "names as in the net itself"
    y2, grads2 = step(net, x)
    assert torch.equal(y, y2) and close(grads2, grads)
    assert type(restore(net).module[1]) is neuron.ParametricLIFNode


@pytest.mark.parametrize("order", ["retrofit-then-compile", "compile-then-retrofit"])
def test_torch_compile(order):
    torch.manual_seed(0)
    torch.compiler.reset()
    plain, x = nn.Sequential(nn.Linear(6, 6), lif()), 2 * torch.randn(5, 2, 6)
    y, grads = step(plain, x)
    assert not any("multi_step" in name for name in graph_of(plain(x)))
    functional.reset_net(plain)
    if order == "retrofit-then-compile":
        net = torch.compile(retrofit(plain), backend="eager")
    else:
        net = torch.compile(plain, backend="eager")
        step(net, x)  # compiled with the framework's neuron, and to be compiled again
        retrofit(net)
    assert report(net).changed == [("1", "LIFNode", "FusedLIFNode")]
    y2, grads2 = step(net, x)
    assert torch.equal(y, y2) and close(grads2, grads)
    assert any("multi_step" in name for name in graph_of(net(x))), "the compiled code is that of our neuron"


def graph_of(y):
    """Names of the autograd nodes behind a tensor."""
    names, todo = [], [y.grad_fn]
    while todo:
        node = todo.pop()
        names.append(type(node).__name__)
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    return names


# ---- refused ----

@pytest.mark.parametrize("function", [retrofit, restore, report])
def test_not_a_module(function):
    name = function.__name__
    with pytest.raises(MemextError, match=rf"^sj_memext\.{name}: net is list; a torch.nn.Module is needed"):
        function([lif()])


def test_unknown_method_lists_what_there_is():
    with pytest.raises(MemextError, match="method is 'neurons'; allowed: 'neuron'"):
        retrofit(shared(), "neurons")
    with pytest.raises(MemextError, match=r"sj_memext\.retrofit: method is \['neuron'\]; allowed: 'neuron'"):
        retrofit(shared(), ["neuron"])


def test_unknown_option_lists_what_there_is():
    with pytest.raises(MemextError, match=r"method 'neuron' has no option 'skipp'; allowed: skip"):
        retrofit(shared(), "neuron", skipp=["1"])


def test_a_net_without_neurons_says_what_was_found():
    with pytest.raises(MemextError, match=r"no neuron of the framework, only: 1 torch\.nn\.\S+\.Sequential, 2 "
                                          r"torch\.nn\.\S+\.Linear"):
        retrofit(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))


def test_a_net_with_nothing_to_change_says_why():
    net = nn.Sequential(OwnMaths(), neuron.EIFNode())
    with pytest.raises(MemextError, match=r"no neuron of this Sequential can be changed. Found: 0 \(OwnMaths\): it "
                                          r"overrides .*; 1 \(EIFNode\): there is no"):
        retrofit(net)
    with pytest.raises(MemextError, match="was not retrofitted"):
        report(net)


@pytest.mark.parametrize("skip, left", [(["1"], ["1"]), (["2.*"], ["2.lif"]), (["3"], ["1"])])
def test_skip_takes_names_and_patterns(skip, left):
    net = residual() if skip != ["3"] else nn.Sequential(*shared(), nn.Sequential(lif()))
    retrofit(net, skip=skip)
    assert [(name, why) for name, _, why in report(net).skipped] == [(name, "named in skip") for name in left]
    assert len(report(net).changed) == 1


def test_skip_none_skips_nothing():
    assert report(retrofit(residual(), skip=None)).skipped == []


@pytest.mark.parametrize("skip, message", [("1", "a list of names or patterns"), ([1], "a list of names or patterns"),
                                           (3, "a list of names or patterns"),
                                           (["4.*"], r"skip='4\.\*' fits no neuron; the neurons are: 1, 2.lif"),
                                           (["1", "2.lif"], "can be changed. Found: 1 .*named in skip")])
def test_a_skip_that_cannot_be_meant_is_refused(skip, message):
    net = residual()
    own = classes(net)
    with pytest.raises(MemextError, match=message):
        retrofit(net, skip=skip)
    assert classes(net) == own


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    net = nn.Sequential(lif(), nn.Linear(2, 2), lif(), lif())
    own, before = classes(net), [dict(vars(m)) for m in net.modules()]
    assign, calls = _entering._assign_class, []

    def fails_once(module, cls):
        calls.append(cls)
        if len(calls) == 2:
            raise TypeError("object layout differs")
        assign(module, cls)

    monkeypatch.setattr(_entering, "_assign_class", fails_once)
    with pytest.raises(MemextError, match=r"changing '2' failed \(TypeError: object layout differs\); the model is as"):
        retrofit(net)
    assert len(calls) == 3, "one done, one failed, one put back"
    assert classes(net) == own and [dict(vars(m)) for m in net.modules()] == before


def test_retrofitting_twice_is_fine_and_reports_what_is_changed():
    net = retrofit(retrofit(residual()))
    assert report(net).changed == [("1", "ParametricLIFNode", "FusedParametricLIFNode"),
                                   ("2.lif", "LIFNode", "FusedLIFNode")]
    assert report(net).skipped == []
    assert type(restore(net)[1]) is neuron.ParametricLIFNode


def test_the_report_follows_the_net():
    net = retrofit(nn.Sequential(*residual(), neuron.EIFNode(), lif()), skip=["4"])
    (_, _, no_version), named = report(net).skipped
    assert named == ("4", "LIFNode", "named in skip") and "no memory-efficient version" in no_version
    plif, block = ("1", "ParametricLIFNode", "FusedParametricLIFNode"), ("2.lif", "LIFNode", "FusedLIFNode")
    assert report(net).changed == [plif, block]

    restore(net[2])  # a part
    left = ("2.lif", "LIFNode", "it can be changed, and is not: it was added or restored after the last retrofit, or "
                                "is not part of it")
    assert report(net).changed == [plif] and report(net).skipped == [left, ("3", "EIFNode", no_version), named]
    retrofit(net[2])
    assert report(net).changed == [plif, block] and report(net[2]).changed == [("lif", *block[1:])]
    assert report(net).skipped == [("3", "EIFNode", no_version), named]

    net[4] = neuron.IFNode()  # not the one that was skipped
    assert report(net).skipped[1] == ("4", "IFNode", left[2])
    retrofit(net)
    assert report(net).changed == [plif, block, ("4", "IFNode", "FusedIFNode")] and report(net).method == "neuron"
    restore(net)
    for part in (net, net[2]):
        with pytest.raises(MemextError, match=r"^sj_memext\.report: this \w+ was not retrofitted by sj_memext"):
            report(part)


def test_a_neuron_that_was_built_as_ours_is_left_by_restore():
    net = nn.Sequential(FusedLIFNode(step_mode="m"), lif())
    assert report(retrofit(net)).skipped == [("0", "FusedLIFNode", "already ours")]
    restore(net)
    assert [type(m) for m in net] == [FusedLIFNode, LIFNode]


def test_restore_refuses_after_somebody_elses_class_change():
    net = retrofit(residual())
    own = classes(net)
    net[2].lif.__class__ = LIFNode
    with pytest.raises(MemextError, match=r"^sj_memext\.restore: '2\.lif' cannot be restored: it was made "
                                          r"sj_memext\.neuron\.FusedLIFNode, and is now spikingjelly\.\S*LIFNode"):
        restore(net)
    assert type(net[1]) is FusedParametricLIFNode, "nothing was restored"
    retrofit(net)
    assert "it was retrofitted, but it was made" in report(net).skipped[0][2]
    assert [name for name, _, _ in report(net).changed] == ["1"]
    net[2].lif.__class__ = FusedLIFNode
    assert classes(net) == own and type(restore(net)[2].lif) is LIFNode


def test_restore_and_report_need_a_retrofit():
    for function in (restore, report):
        with pytest.raises(MemextError, match="retrofitted"):
            function(shared())


def test_a_sharded_model_is_refused():
    class FSDPModule:
        pass

    FSDPModule.__module__ = "torch.distributed.fsdp._fully_shard._fully_shard"
    net = shared()
    net[0].__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})
    with pytest.raises(MemextError, match=r"'0' \(FSDPLinear\) is already sharded; retrofit first, then torch.compile, "
                                          "DistributedDataParallel or fully_shard"):
        retrofit(net)
    assert type(net[1]) is LIFNode


def test_a_really_sharded_model_is_refused(process_group):
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    net = shared()
    fully_shard(net[0], mesh=mesh)
    with pytest.raises(MemextError, match="already sharded"):
        retrofit(net)


# ---- other methods ----

def test_a_method_of_the_table_slots_in(monkeypatch):
    class Slow(nn.Linear):
        pass

    def linear(framework, net, prefer="balanced"):
        return Plan([_entering.Change(name, m, Slow, {"prefer": prefer}) for name, m in net.named_modules()
                     if type(m) is nn.Linear])

    monkeypatch.setitem(sj_memext.retrofit.__self__.methods, "linear", linear)
    net = retrofit(retrofit(shared()), "linear", prefer="speed")
    assert type(net[0]) is Slow and net[0].prefer == "speed" and type(net[1]) is FusedLIFNode
    with pytest.raises(MemextError, match="has no option 'x'; allowed: prefer"):
        retrofit(net, "linear", x=1)
    assert report(net).method == "neuron, linear"
    assert report(net).changed == [("0", "Linear", "Slow"), ("1", "LIFNode", "FusedLIFNode"), ("2", "Linear", "Slow")]
    restore(net)
    assert type(net[0]) is nn.Linear and type(net[1]) is LIFNode and not hasattr(net[0], "prefer")


# ---- substitute ----

def test_neurons_built_inside_are_ours_and_the_framework_is_untouched_outside():
    before = {host: dict(vars(host)) for host in FUSED}
    with substitute("neuron") as seen:
        net = residual()
        nodes = [LIFNode(), neuron.LIFNode(tau=3.0), neuron.IFNode(), Harmless(label="c"), OwnMaths(), neuron.EIFNode()]
    assert [type(m).__name__ for m in nodes] == ["FusedLIFNode", "FusedLIFNode", "FusedIFNode",
                                                 "FusedLIFNodeOfHarmless", "OwnMaths", "EIFNode"]
    assert [name for name, _, _ in report(net).changed] == ["1", "2.lif"]
    assert type(net[1]) is FusedParametricLIFNode and type(net[2].lif) is FusedLIFNode
    assert nodes[1].tau == 3.0 and nodes[3].label == "c"
    assert ("LIFNode #3", "LIFNode", "FusedLIFNode") in seen.changed and len(seen.changed) == 6
    assert [kind for _, kind, _ in seen.skipped] == ["OwnMaths"]
    assert {host: dict(vars(host)) for host in FUSED} == before
    assert type(LIFNode()) is LIFNode
    assert type(pickle.loads(pickle.dumps(net))[1]) is FusedParametricLIFNode
    assert type(copy.deepcopy(net)[2].lif) is FusedLIFNode
    assert type(restore(net)[1]) is neuron.ParametricLIFNode


def test_substitute_works_as_a_decorator_and_nests():
    @substitute("neuron")
    def build():
        with substitute("neuron"):
            inner = LIFNode()
        return inner, LIFNode()

    for _ in range(2):
        assert [type(node) for node in build()] == [FusedLIFNode, FusedLIFNode]
    assert type(LIFNode()) is LIFNode


def test_substitute_ends_with_an_exception():
    original = LIFNode.__init__
    with pytest.raises(AssertionError), substitute("neuron"):
        LIFNode(tau=2)  # the framework wants a float
    assert LIFNode.__init__ is original


def test_other_threads_build_the_frameworks_neurons():
    built = []
    with substitute("neuron"):
        thread = threading.Thread(target=lambda: built.append(type(LIFNode())))
        thread.start()
        thread.join()
    assert built == [LIFNode]


def test_somebody_elses_wrapper_survives_ours():
    original, calls = LIFNode.__init__, []

    with substitute("neuron"):
        ours = LIFNode.__init__

        def theirs(self, *args, **kwargs):
            calls.append(type(self))
            ours(self, *args, **kwargs)

        LIFNode.__init__ = theirs
    try:
        assert LIFNode.__init__ is theirs
        assert type(LIFNode()) is LIFNode and calls == [LIFNode]
    finally:
        LIFNode.__init__ = original


def test_substitute_takes_the_neuron_method_only():
    with pytest.raises(MemextError, match=r"method is 'compress'; allowed: 'neuron'. Others need the whole model"):
        with substitute("compress"):
            pass


def test_nothing_is_kept_alive():
    net = retrofit(shared())
    node = weakref.ref(net[1])
    del net
    gc.collect()
    assert node() is None
