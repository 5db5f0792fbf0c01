"""temporal.unroll and sj_memext.functional.multi_step_forward on SpikingJelly nets in step mode "s", against a loop.

Spikes and final states are those of the loop bit for bit; gradients differ by the order in which steps are added up.
"""
from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from helpers import assert_bit_equal, assert_fires, error
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import nn
from zoo import ZOO, wake

import sj_memext
from shared_core.errors import MemextError
from shared_core.temporal import unroll
from sj_memext.functional import multi_step_forward, online_train_step
from sj_memext.klif import FusedKLIFNode
from sj_memext.neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode

METHODS = ("store", "checkpoint", "reverse", "online")
BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}  # norm-relative: sums over T steps in another order, with room
RESETS = (None, 0.0, -0.5)
ATAN = surrogate.ATan()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- nets -------------------------------------------------------------------------------------------------------


def mlp(make, width: int = 9) -> nn.Sequential:
    """Two layers of neurons. What a neuron divides by tau comes tau times as strong, and a fifth fires at once."""
    net = nn.Sequential(layer.Linear(6, width), make(), layer.Linear(width, 4), make())
    for linear, node in (net[:2], net[2:]):
        tau = 1 / node.w.sigmoid().item() if hasattr(node, "w") else getattr(node, "tau", 1.0)
        with torch.no_grad():
            linear.weight.mul_(2 * tau if getattr(node, "decay_input", False) else 2.0)
    return wake(net, torch.randn(40, 6), 0.2)


def data(steps: int, shape=(3, 6), dtype=torch.float32) -> torch.Tensor:
    return torch.randn(steps, *shape, dtype=dtype)


# ---- the comparison ---------------------------------------------------------------------------------------------


def memories(net: nn.Module) -> dict:
    return {f"{name}.{key}": value for name, m in net.named_modules() if isinstance(m, base.MemoryModule)
            for key, value in m._memories.items()}


def detach(net: nn.Module) -> None:
    for m in net.modules():
        if isinstance(m, base.MemoryModule):
            for key, value in m._memories.items():
                m._memories[key] = value.detach() if isinstance(value, torch.Tensor) else value


def loop(net: nn.Module, x_seq, online: bool = False):
    out = []
    for x in x_seq:
        if online:
            detach(net)
        out.append(net(x))
    return torch.stack(out)


def gradients(net: nn.Module, x, forward) -> tuple[torch.Tensor, list]:
    """(outputs, gradients of x and of the parameters) for a loss with a weight of its own for every output."""
    torch.manual_seed(7)
    x = x.detach().requires_grad_()
    out = forward(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out.dtype)
    parameters = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad((out * weight).sum(), [x, *parameters], allow_unused=True)
    return out.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip([x, *parameters], found)]


def check(net: nn.Module, x, method: str = "reverse", fires: bool = True, **options) -> None:
    """unroll against the loop, from the same weights, states and random numbers."""
    plain, classes = copy.deepcopy(net), [type(m) for m in net.modules()]
    attributes = [set(vars(m)) for m in net.modules()]
    wanted, of_loop = gradients(plain, x, lambda x: loop(plain, x, method == "online"))
    got, of_unroll = gradients(net, x, lambda x: unroll(net, x, method, **options))
    if fires:
        assert_fires(got)
    assert_bit_equal(got, wanted, "outputs")
    names = ["x", *(name for name, p in net.named_parameters() if p.requires_grad)]
    for name, a, b in zip(names, of_unroll, of_loop, strict=True):
        assert error(a, b) <= BOUND[x.dtype], f"gradient of {name}: {error(a, b):.2e}"
    assert any(b.any() for b in of_loop)
    assert [type(m) for m in net.modules()] == classes and [set(vars(m)) for m in net.modules()] == attributes
    after = memories(plain)
    for name, value in memories(net).items():
        if isinstance(value, torch.Tensor):
            assert_bit_equal(value, after[name].detach(), name)
            assert not value.requires_grad, f"{name} holds a graph"
        else:
            assert value == after[name], name
    for (name, a), b in zip(net.state_dict().items(), plain.state_dict().values()):
        assert torch.equal(a, b), name


# ---- neurons ----------------------------------------------------------------------------------------------------

NODES = {}
for r in RESETS:
    for d in (False, True):
        o = {"v_reset": r, "detach_reset": d, "surrogate_function": ATAN, "v_threshold": 0.7}
        end = f"r{r}{'-detach' if d else ''}"
        NODES[f"IF-{end}"] = lambda o=o: neuron.IFNode(**o)
        for decay in (True, False):
            tau = {None: 1.05, 0.0: 3.7, -0.5: 100.0}[r] if decay else {None: 2.0, 0.0: 1.05, -0.5: 20.0}[r]
            NODES[f"LIF-{end}-tau{tau}-{decay}"] = lambda o=o, t=tau, y=decay: neuron.LIFNode(t, y, **o)
            NODES[f"PLIF-{end}-{decay}"] = lambda o=o, y=decay: neuron.ParametricLIFNode(2.3, y, **o)
    o = {"v_reset": r, "surrogate_function": surrogate.Sigmoid(3.0), "v_threshold": 0.7}
    NODES[f"FusedIF-{r}"] = lambda o=o: FusedIFNode(**o)
    NODES[f"FusedLIF-{r}"] = lambda o=o: FusedLIFNode(1.7, False, **o)
    NODES[f"FusedPLIF-{r}"] = lambda o=o: FusedParametricLIFNode(1.7, **o)
    NODES[f"KLIF-{r}"] = lambda o=o: neuron.KLIFNode(scale_reset=True, **o)
    NODES[f"FusedKLIF-{r}"] = lambda o=o: FusedKLIFNode(**o)


@pytest.mark.parametrize("name", NODES)
def test_every_neuron(name):
    """The gradient of w and k among them; the last sequence starts where the first one ended."""
    net = mlp(NODES[name])
    for i, method in enumerate(METHODS):
        check(net, data((23, 7, 12, 1)[i]), method, fires=i == 0)
    functional.reset_net(net)
    assert not any(isinstance(v, torch.Tensor) for v in memories(net).values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [n for n in NODES if "0.5" in n and "detach" not in n])
def test_float64(name, method):
    net = mlp(NODES[name]).double()
    check(net, data(40, dtype=torch.float64), method, fires=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["checkpoint", "reverse"])
@pytest.mark.parametrize("tau", [1.05, 2.0, 20.0, 100.0])
@pytest.mark.parametrize("v_reset", RESETS)
def test_a_thousand_steps(tau, v_reset, method):
    """What is kept of v in a step goes from 0.05 to 0.99."""
    for decay in (True, False):
        net = mlp(lambda decay=decay: neuron.LIFNode(tau, decay, 0.7, v_reset, ATAN))
        for steps in (64, 1000):
            functional.reset_net(net)
            check(net, data(steps), method, fires=False)
    functional.reset_net(net)
    check(net.double(), data(300, dtype=torch.float64), method, fires=False)


# ---- other modules that carry states ----------------------------------------------------------------------------

OTHERS = {
    "SynapseFilter": lambda: layer.SynapseFilter(tau=3.0, learnable=True),
    "QIF": lambda: neuron.QIFNode(v_threshold=0.7),
    "EIF": lambda: neuron.EIFNode(v_threshold=0.7),
    "ElementWiseRecurrent": lambda: layer.ElementWiseRecurrentContainer(neuron.IFNode(v_threshold=0.7), torch.add),
    "LinearRecurrent": lambda: layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.7), 9, 9),
    "Dropout": lambda: layer.Dropout(0.3),
    "DropConnect": lambda: layer.DropConnectLinear(9, 9, p=0.3),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_memories(name, method):
    """Beside our neurons, which are taped; their own states are replayed. Dropout holds its mask over the sequence."""
    node = lambda: neuron.LIFNode(1.7, False, 0.7, surrogate_function=ATAN)  # noqa: E731
    net = nn.Sequential(layer.Linear(6, 9), node(), OTHERS[name](), layer.Linear(9, 4), node())
    check(wake(net, data(40)[0], 0.3), data(11), method, fires=False)
    if method in ("checkpoint", "reverse"):  # a container calls what it holds step by step
        functional.reset_net(net.double())
        check(net, data(11, (4, 6), torch.float64), method, fires=False, steps_at_once=4)


@pytest.mark.parametrize("make", [lambda: layer.Delay(2), lambda: neuron.SlidingPSN(2, step_mode="s")],
                         ids=["Delay", "SlidingPSN"])
@pytest.mark.parametrize("method", METHODS)
def test_a_queue_is_refused(make, method):
    """They carry a list and write into it: what it was before a step is gone, and the gradient would be wrong."""
    net = nn.Sequential(layer.Linear(6, 9), make())
    with pytest.raises(MemextError, match=r"1 \((Delay|SlidingPSN)\).*queue"):
        unroll(net, data(5), method)


# ---- convolutions, batch norm, residual blocks ------------------------------------------------------------------


def conv() -> nn.Sequential:
    node = lambda **o: neuron.LIFNode(1.7, False, 0.6, surrogate_function=ATAN, **o)  # noqa: E731
    return nn.Sequential(layer.Conv2d(2, 5, 3, padding=1, bias=False), layer.BatchNorm2d(5), node(), layer.MaxPool2d(2),
                         layer.Conv2d(5, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), node(v_reset=None),
                         layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Dropout(0.2), layer.Linear(6, 3))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_has_statistics_of_each_step_and_counts_them_once(method, training):
    net = conv().train(training)
    check(net, torch.randn(6, 4, 2, 8, 8), method, fires=False)
    assert net[1].num_batches_tracked == 6 * training


@pytest.mark.parametrize("how", ["neuron", "compress", "recompute"])
def test_after_retrofit(how):
    net = sj_memext.retrofit(conv(), how)
    for method in METHODS:
        check(net, torch.randn(4, 4, 2, 8, 8), method, fires=False)
    sj_memext.restore(net)
    assert type(net[2]) is neuron.LIFNode


@pytest.mark.parametrize("method", METHODS)
def test_residual_blocks(method):
    net, x = ZOO["sew_resnet18-ADD"].make()
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    check(net.double(), x.double(), method, fires=False)


# ---- the framework's way of calling -----------------------------------------------------------------------------


def test_multi_step_forward_takes_what_the_frameworks_takes():
    net = mlp(NODES["LIF-r-0.5-tau20.0-False"])
    x = data(8)
    wanted = functional.multi_step_forward(x, net)
    for given in (net, list(net), tuple(net), [net[:2], net[2:]], [net[0], lambda x: net[1](x), net[2:]]):
        functional.reset_net(net)
        assert_bit_equal(multi_step_forward(x, given).detach(), wanted.detach())
    functional.reset_net(net)
    grads = []
    for forward in (functional.multi_step_forward, multi_step_forward):
        functional.reset_net(net)
        grads.append(torch.autograd.grad(forward(x, [net[:2], net[2:]]).square().sum(), net.parameters()))
    for a, b in zip(*grads):
        assert error(b, a) <= 1e-5  # sums over 8 steps in another order


@pytest.mark.parametrize("call", [lambda net, x: unroll(net, x), lambda net, x: multi_step_forward(x, net),
                                  lambda net, x: online_train_step(net, x, lambda out, t: out.sum())])
def test_step_mode_m_is_refused(call):
    net = mlp(neuron.IFNode)
    net[1].step_mode = "m"
    with pytest.raises(MemextError, match=r"1 \(IFNode\) has step_mode='m'.*set_step_mode\(net, 's'\)"):
        call(net, torch.randn(3, 2, 6))


@pytest.mark.parametrize("method", METHODS)
def test_parameter_hooks_run_once(method):
    net, seen = mlp(NODES["PLIF-rNone-True"]), []
    for name, p in net.named_parameters():
        p.register_hook(lambda g, name=name: seen.append(name))
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))
    unroll(net, data(9), method).sum().backward()
    names = [name for name, _ in net.named_parameters()]
    assert sorted(seen) == sorted(names * 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [neuron.IFNode, FusedIFNode])
def test_the_record_of_v_is_that_of_the_loop(make, method):
    net = mlp(lambda: make(store_v_seq=True))
    twin = copy.deepcopy(net)
    x = data(7)
    loop(twin, x)
    unroll(net, x, method).sum().backward()
    for i in (1, 3):
        assert_bit_equal(net[i].v_seq.detach(), twin[i].v_seq.detach(), "v_seq")


@pytest.mark.parametrize("method", ["checkpoint", "reverse"])
def test_windows_with_an_attached_state(method):
    """Two windows with the state attached between them have the gradient of one sequence."""
    net = mlp(NODES["LIF-r0.0-tau3.7-True"])
    x = data(20)
    weight = torch.randn(20, 3, 4)
    whole = torch.autograd.grad((loop(net, x) * weight).sum(), net.parameters())
    functional.reset_net(net)
    parts = [unroll(net, x[:9], method, final_state="attached"), unroll(net, x[9:], method)]
    found = torch.autograd.grad((torch.cat(parts) * weight).sum(), net.parameters())
    for a, b in zip(found, whole):
        assert error(a, b) <= 1e-5


@pytest.mark.parametrize("method", ["reverse", "checkpoint"])
def test_several_steps_at_once(method):
    """A Sequential of the framework's layers in step mode "s". Bits may differ from single steps, in float64 by little;
    a whole number of chunks and one more."""
    net = conv().eval().double()
    x = torch.randn(13, 4, 2, 8, 8, dtype=torch.float64)
    wanted, of_loop = gradients(net, x, lambda x: loop(net, x))
    for k in (1, 4, 13, "auto", "fast"):
        functional.reset_net(net)
        got, found = gradients(net, x, lambda x: unroll(net, x, method, steps_at_once=k))  # noqa: B023
        assert error(got, wanted) < 1e-12  # the same spikes, and a last layer that adds in another order
        for a, b in zip(found, of_loop):
            assert error(a, b) <= 1e-10


def test_several_steps_at_once_are_refused_where_steps_differ():
    with pytest.raises(MemextError, match=r"1 \(BatchNorm2d\) is not known to treat samples apart"):
        unroll(conv(), torch.randn(4, 4, 2, 8, 8), steps_at_once=2)

    class Centred(nn.Sequential):
        def forward(self, x):
            return super().forward(x - x.mean())

    for net in (Centred(layer.Linear(6, 3)), layer.OTTTSequential(layer.Linear(6, 3))):
        with pytest.raises(MemextError, match=rf"\({type(net).__name__}\) is not known to treat samples apart"):
            unroll(nn.Sequential(net, neuron.IFNode()), data(4), steps_at_once=2)


def test_a_failing_step_leaves_the_net_as_it_was():
    net, classes = mlp(neuron.IFNode), []
    x = torch.randn(3, 2, 6)
    net.append(nn.Identity())
    net[4].forward = lambda x: classes.append(1) or (1 / 0 if len(classes) == 2 else x)
    with suppress(ZeroDivisionError):
        unroll(net, x)
    assert len(classes) == 2 and type(net[1]) is neuron.IFNode


class OneNeuron(nn.Module):
    """One neuron object after three layers, called three times a step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(layer.Linear(6, 6) for _ in range(3))
        self.lif = neuron.LIFNode(tau=1.5, v_reset=None, surrogate_function=ATAN)
        with torch.no_grad():
            for linear in self.layers:
                linear.weight.mul_(2).add_(0.35)

    def forward(self, x):
        for linear in self.layers:
            x = self.lif(linear(x))
        return x


@pytest.mark.parametrize("method", ["compress", "recompute"])
def test_a_neuron_called_several_times_a_step_with_its_spikes_kept_as_bits(method):
    """The first call of the first step is at rest, and could take another way than the others."""
    net, x = OneNeuron(), data(5).abs()
    wanted, of_loop = gradients(net, x, lambda x: loop(net, x))
    assert_fires(wanted)
    functional.reset_net(net)
    sj_memext.retrofit(net, method)
    got, found = gradients(net, x, lambda x: unroll(net, x, "reverse"))
    assert_bit_equal(got, wanted)
    for a, b in zip(found, of_loop):
        assert error(a, b) <= 1e-5
