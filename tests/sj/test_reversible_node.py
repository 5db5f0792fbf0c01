"""ReversibleLIFNode in SpikingJelly: the framework's rules for states, retrofit of its model zoo, training with OTTT,
DSR and other surrogates as in the paper's Table 2."""
from __future__ import annotations

import copy
import pickle

import pytest
import reversible_reference as paper
import torch
from helpers import assert_bit_equal, error
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet, spiking_vgg
from torch import nn
from zoo import ThinSpiking

import sj_memext
from shared_core import surrogate as core_surrogate
from shared_core._plan_methods import NATIVE, Planner
from shared_core._plan_trace import mean_of_outputs
from shared_core.errors import MemextError
from shared_core.reversible.neuron import Equations
from sj_memext.neuron import ReversibleLIFNode, ReversibleOTTTLIFNode

OPTIONS = dict(groups=3, tau=1.7, alpha=0.13, beta=0.8, v_threshold=0.4, v_reset=-0.1)
EQ = Equations(3, 1.7, 0.13, 0.8, 0.4, -0.1)


def node(**options) -> ReversibleLIFNode:
    return ReversibleLIFNode(**{**OPTIONS, "surrogate_function": surrogate.ATan(), "step_mode": "m", **options})


def inputs(*shape) -> torch.Tensor:
    return torch.randn(*(shape or (5, 7, 12))) * 0.8 + 0.3


# ---- one node ------------------------------------------------------------------------------------------------------

def test_both_step_modes_are_the_papers_neuron():
    x, many, one = inputs(), node(), node(step_mode="s")
    wanted, end, *_ = paper.forward(EQ, x, None, paper.ATAN)
    assert_bit_equal(many(x), wanted)
    assert_bit_equal(torch.stack([one(x_t) for x_t in x]), wanted)
    assert_bit_equal(many.v, end)
    assert_bit_equal(one.v, end)


def test_gradients_agree_in_both_step_modes():
    grads = []
    for mode in "ms":
        torch.manual_seed(1)
        x, net = inputs().requires_grad_(), node(step_mode=mode)
        y = net(x) if mode == "m" else torch.stack([net(x_t) for x_t in x])
        weights = torch.randn_like(y), torch.zeros(7, 12)
        (g,) = torch.autograd.grad((y * weights[0]).sum(), x)
        grads.append(g)
        assert error(g, paper.oracle(EQ, x, None, paper.ATAN, weights)[0]) <= 1e-5
    assert error(*grads) <= 1e-6


def test_the_state_follows_the_frameworks_rules():
    net, x = node(), inputs()
    first = net(x)
    assert not torch.equal(net(x), first)  # goes on from v
    functional.reset_net(net)
    assert net.v == -0.1
    assert_bit_equal(net(x), first)
    assert net(inputs(5, 2, 12)).shape == (5, 2, 12) and net.v.shape == (2, 12)  # another batch: from rest
    net.v = torch.full((7, 12), -0.1)
    assert_bit_equal(net(x), first)
    net.v = -0.1
    assert_bit_equal(net(x.double()), paper.forward(EQ, x.double(), None, paper.ATAN)[0])
    assert net.v.dtype == torch.float64
    functional.reset_net(net)
    net(x.requires_grad_())
    assert net.v.requires_grad
    functional.detach_net(net)
    assert not net.v.requires_grad
    functional.reset_net(net)
    with torch.inference_mode():
        net(x.detach())
    net(x).sum().backward()  # what inference mode left is no obstacle
    net.v = "far"
    with pytest.raises(MemextError, match="reset_net"):
        net(x)


def test_recorded_potentials():
    net, x = node(store_v_seq=True), inputs()
    net(x)
    *_, before, _ = paper.forward(EQ, x, None, paper.ATAN)
    assert_bit_equal(net.v_seq[:-1], before[1:])
    single = node(store_v_seq=True, step_mode="s")
    for x_t in x:
        single(x_t)
    assert_bit_equal(single.v_seq, net.v_seq)


def test_copies_pickles_and_checkpoints():
    net, x = nn.Sequential(nn.Linear(12, 12), node()), inputs()
    wanted = net(x)
    functional.reset_net(net)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_bit_equal(other(x), wanted)
    fresh = nn.Sequential(nn.Linear(12, 12), node())
    fresh.load_state_dict(net.state_dict())
    assert_bit_equal(fresh(x), wanted)
    assert "groups=3" in repr(net) and "beta=0.8" in repr(net)


def test_invert_and_check_invertible():
    net, x = node(), inputs(100, 7, 12)
    y = net(x)
    found, before = net.invert(y, potentials=True)
    assert_bit_equal(found, paper.gridded(x, 0.8) / 0.8)
    assert_bit_equal(before, paper.forward(EQ, x, None, paper.ATAN)[2])
    v = net.v
    assert net.check_invertible(x) and net.v is v
    assert not net.check_invertible(x * 1000)
    assert_bit_equal(net.invert(net(x[:9]), v.detach()), found[:9])
    net.step_mode = "s"
    assert net.check_invertible(x[0])


def test_channels_and_odd_maps():
    x = inputs(4, 2, 6, 5, 7)
    with pytest.raises(MemextError, match=r"ReversibleLIFNode.*7 elements"):
        node()(x)
    net = node(split_dim=1)
    assert_bit_equal(net(x), paper.forward(EQ, x, None, paper.ATAN, 1)[0])
    assert net.check_invertible(x)


@pytest.mark.parametrize("options,text", [(dict(v_reset=None), "finite number"), (dict(groups=1), ">= 2"),
                                          (dict(tau=-1.0), "positive"), (dict(v_threshold="1"), "finite")])
def test_constants_out_of_range(options, text):
    with pytest.raises(MemextError, match=text):
        node(**options)


def test_it_is_one_of_the_frameworks_neurons_and_no_other_method_takes_it():
    assert neuron.ReversibleLIFNode is ReversibleLIFNode
    assert isinstance(node(), neuron.BaseNode)
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), node())
    sj_memext.retrofit(net, "neuron")
    assert type(net[1]) is ReversibleLIFNode and "computes something else" in str(sj_memext.report(net))


# ---- retrofit ------------------------------------------------------------------------------------------------------

def thin_vgg(letter: str):
    def build(**o):
        cfg = [v if v == "M" else v // 8 for v in spiking_vgg.cfgs[letter]]
        net = spiking_vgg.SpikingVGG.__new__(spiking_vgg.SpikingVGG)
        nn.Module.__init__(net)
        net.features = net.make_layers(cfg, batch_norm=True, neuron=o.pop("spiking_neuron"), **o)
        net.avgpool, net.classifier = layer.AdaptiveAvgPool2d((1, 1)), layer.Linear(64, 10)
        return net
    return build


def thin_resnet(block, layers):
    def build(**o):
        net = ThinSpiking(block, layers, num_classes=10, **o)
        net.fc = layer.Linear(64 * block.expansion, 10)
        return net
    return build


NETS = {"vgg11": thin_vgg("A"), "vgg13": thin_vgg("B"), "vgg16": thin_vgg("D"), "vgg19": thin_vgg("E"),
        "resnet18": thin_resnet(spiking_resnet.BasicBlock, [2, 2, 2, 2]),
        "resnet34": thin_resnet(spiking_resnet.BasicBlock, [3, 4, 6, 3]),
        "resnet50": thin_resnet(spiking_resnet.Bottleneck, [3, 4, 6, 3]),
        "resnet101": thin_resnet(spiking_resnet.Bottleneck, [3, 4, 23, 3])}
FAST = ("vgg11", "vgg19", "resnet18")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_retrofit_of_the_papers_networks(name):
    kind = neuron.IFNode if name == "vgg11" else neuron.LIFNode
    options = {} if kind is neuron.IFNode else {"tau": 1.6}
    net = NETS[name](spiking_neuron=kind, surrogate_function=surrogate.ATan(), **options)
    functional.set_step_mode(net, "m")
    x, keys = torch.randn(2, 2, 3, 32, 32), list(net.state_dict())
    net.eval()
    before = net(x)
    functional.reset_net(net)
    net.train()
    sj_memext.retrofit(net, "reversible", groups=4, alpha=0.2, split_dim=1)
    nodes = [m for m in net.modules() if hasattr(m, "check_invertible")]
    assert nodes and not [m for m in net.modules() if type(m) is kind] and list(net.state_dict()) == keys
    assert all(isinstance(m, kind) and (m.groups, m.alpha, m.split_dim) == (4, 0.2, 1) for m in nodes)
    assert {m.tau for m in nodes} == {options.get("tau", 2.0)}
    assert "another network" in str(sj_memext.report(net))
    net(x).square().mean().backward()
    functional.reset_net(net)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    copied = pickle.loads(pickle.dumps(net))
    assert [type(m) for m in copied.modules()] == [type(m) for m in net.modules()]
    net.eval()
    sj_memext.restore(net)
    assert {type(m) for m in nodes} == {kind} and not any(hasattr(m, "groups") for m in nodes)
    fresh = NETS[name](spiking_neuron=kind, surrogate_function=surrogate.ATan(), **options)
    functional.set_step_mode(fresh, "m")
    assert [type(m) for m in fresh.modules()] == [type(m) for m in net.modules()]
    assert before.shape == net(x).shape


def test_retrofit_of_resnet19():
    models = pytest.importorskip("sj_memext.model")
    if not hasattr(models, "resnet19"):
        pytest.skip("sj_memext.model has no resnet19")
    net = models.resnet19(num_classes=10)
    functional.set_step_mode(net, "m")
    sj_memext.retrofit(net, "reversible", groups=2)
    net(torch.randn(2, 1, 3, 16, 16)).sum().backward()


def test_what_cannot_become_reversible_is_left_and_named():
    class Mine(neuron.LIFNode):
        def single_step_functional_forward(self, inputs, states, **kwargs):
            return super().single_step_functional_forward(inputs, states, **kwargs)

    net = nn.Sequential(neuron.LIFNode(v_reset=None), neuron.ParametricLIFNode(), Mine(), neuron.IFNode())
    sj_memext.retrofit(net, "reversible", skip=["3"])
    report = sj_memext.report(net)
    assert [name for name, *_ in report.changed] == ["0"] and net[0].v_reset == 0.0
    assert {name for name, *_ in report.skipped} == {"1", "2", "3"}
    assert "soft reset" in str(report)
    sj_memext.restore(net)
    assert net[0].v_reset is None
    for options, text in ((dict(groups=1), ">= 2"), (dict(beta=0), "beta is 0"), (dict(skip=["x"]), "fits no neuron")):
        with pytest.raises(MemextError, match=text):
            sj_memext.retrofit(net, "reversible", **options)
        assert type(net[0]) is neuron.LIFNode
    sj_memext.retrofit(net, "neuron")
    with pytest.raises(MemextError, match="restore"):
        sj_memext.retrofit(net, "reversible")
    with pytest.raises(MemextError, match="no option"):
        sj_memext.retrofit(net, "reversible", backend="cuda")


def test_the_planner_sees_that_nothing_is_kept():
    """Traced on tensors without memory; the difference to normal neurons is what those keep and the potentials."""
    net = thin_vgg("A")(spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan())
    functional.set_step_mode(net, "m")
    planner = Planner(net, (4, 2, 3, 32, 32), 1, mean_of_outputs, "cpu", None)
    native, ours = planner.method(NATIVE, {}), planner.method("reversible", {"groups": 2, "split_dim": 1})
    assert ours.problem is None and ours.peak.peak < 0.7 * native.peak.peak
    assert not any(hasattr(m, "groups") for m in net.modules() if isinstance(m, neuron.BaseNode))


def test_compress_can_be_added():
    torch.manual_seed(1)
    net = nn.Sequential(layer.Conv2d(3, 8, 3, step_mode="m"), neuron.LIFNode(step_mode="m"),
                        layer.Conv2d(8, 8, 3, step_mode="m"), layer.MaxPool2d(2, step_mode="m"))
    sj_memext.retrofit(net, "reversible", split_dim=1)
    x = torch.randn(3, 2, 3, 10, 10)

    def grads():
        functional.reset_net(net)
        return torch.autograd.grad(net(x).square().sum(), list(net.parameters()))

    wanted = grads()
    sj_memext.retrofit(net, "compress")
    for g, w in zip(grads(), wanted):
        assert error(g, w) <= 1e-6  # real-valued outputs are kept as they are: the same numbers


# ---- training, Table 2 ---------------------------------------------------------------------------------------------

def task():
    """Two classes of 16 features, constant over 6 steps."""
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 2, (64,), generator=generator)
    x = torch.randn(64, 16, generator=generator) * 0.5
    x[:, :4] += label[:, None] * 1.5
    return x.expand(6, -1, -1).contiguous(), label


def falls(net, loss_of, steps=20) -> None:
    """The loss at the end is well below that of the start."""
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=2e-2), []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(loss_of(net))
        optimizer.step()
        functional.reset_net(net)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < 0.6 * losses[0]


def whole_sequence(net) -> float:
    x, label = task()
    loss = nn.functional.cross_entropy(net(x).mean(0), label)
    loss.backward()
    return loss.item()


class Dspike(torch.autograd.Function):
    """The slope of Dspike (Li et al. 2021b) at temperature 3: that of a tanh through (0, 0) and (1, 1) around u = 0."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        b = torch.tensor(3.0, dtype=u.dtype)
        slope = b * (1 - torch.tanh(b * u) ** 2) / (2 * torch.tanh(b / 2))
        return grad * slope * (u.abs() <= 0.5)


class DspikeFunction(nn.Module):
    alphabet, random = "binary", False

    def forward(self, u):
        return Dspike.apply(u)


@pytest.mark.parametrize("function", [surrogate.Sigmoid(), surrogate.ATan(), sj_memext.surrogate.Triangle(),
                                      DspikeFunction()], ids=lambda f: type(f).__name__)
def test_it_trains_with_each_surrogate(function):
    torch.manual_seed(0)
    falls(nn.Sequential(layer.Linear(16, 32, step_mode="m"), layer.BatchNorm1d(32, step_mode="m"),
                        ReversibleLIFNode(surrogate_function=function, step_mode="m"),
                        layer.Linear(32, 32, step_mode="m"), ReversibleLIFNode(surrogate_function=function,
                                                                              step_mode="m"),
                        layer.Linear(32, 2, step_mode="m")), whole_sequence)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_it_trains_beside_dsr(first):
    """RevDSR: layers with DSR's gradient (differentiation on spike representations) and reversible ones in one net."""
    torch.manual_seed(0)
    pair = [ReversibleLIFNode(surrogate_function=surrogate.ATan(), step_mode="m"),
            neuron.DSRIFNode(T=6, v_threshold=2.0)]
    pair = pair if first else pair[::-1]
    falls(nn.Sequential(layer.Linear(16, 32, step_mode="m"), pair[0], layer.Linear(32, 32, step_mode="m"), pair[1],
                        layer.Linear(32, 2, step_mode="m")), whole_sequence)


def test_it_trains_online_with_ottt():
    """RevOTTT: a backward pass at every step, traces in the place of the gradient through time."""
    torch.manual_seed(0)
    make = lambda: ReversibleOTTTLIFNode(surrogate_function=surrogate.ATan())  # noqa: E731
    net = layer.OTTTSequential(layer.Linear(16, 32), make(), layer.Linear(32, 32), make(), layer.Linear(32, 2))
    x, label = task()

    def online(net) -> float:
        total = 0.0
        for x_t in x:
            loss = nn.functional.cross_entropy(net(x_t), label) / len(x)
            loss.backward()  # without retain_graph: nothing of the step before is needed
            total += loss.item()
        return total

    falls(net, online)
    net.eval()
    assert net(x[0]).shape == (64, 2)


def test_ottt_returns_the_trace_and_carries_no_gradient():
    lif = ReversibleOTTTLIFNode(tau=4.0, surrogate_function=surrogate.ATan())
    x = inputs(3, 4, 8).requires_grad_()
    trace = 0
    for x_t in x:
        y, seen = lif(x_t)
        trace = trace * 0.75 + y.detach()
        assert torch.allclose(seen, trace) and not seen.requires_grad
    (g,) = torch.autograd.grad(y.sum(), x)
    assert g[2].any() and not g[:2].any()
    with pytest.raises((MemextError, ValueError), match="step"):
        ReversibleOTTTLIFNode(step_mode="m")
    assert core_surrogate.atan(alpha=2.0) == paper.ATAN
