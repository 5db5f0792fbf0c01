"""SLTTLIFNode in both step modes, and online_train_step (SLTT, SLTT-K), against autograd with detached potentials."""
from __future__ import annotations

import copy
import itertools
import pickle
from contextlib import nullcontext

import pytest
import torch
from helpers import assert_bit_equal, assert_fires, error
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import nn
from zoo import wake

import sj_memext
from shared_core.errors import MemextError
from shared_core.memory import measure
from shared_core.temporal import unroll
from sj_memext import neuron as ours
from sj_memext.functional import online_train_step
from sj_memext.neuron import FusedIFNode, FusedLIFNode, SLTTLIFNode
from sj_memext.sltt import FusedSLTTLIFNode

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}  # norm-relative: sums over T steps in another order, with room
STEPS = 37  # more than a block of 32
CASES = list(itertools.product((None, 0.0, -0.5), (True, False), (1.7, 2.0)))
cases = pytest.mark.parametrize("v_reset, decay, tau", CASES)


def options(v_reset=-0.5, decay=False, tau=1.7, **more) -> dict:
    return {"tau": tau, "decay_input": decay, "v_threshold": 0.7, "v_reset": v_reset,
            "surrogate_function": surrogate.ATan(), **more}


def drive(steps=STEPS, shape=(53,), dtype=torch.float32) -> torch.Tensor:
    return (torch.randn(steps, *shape, dtype=dtype) * 1.5 + 0.4).requires_grad_()


def detached_loop(net: nn.Module, x_seq: torch.Tensor) -> torch.Tensor:
    """The definition: before each step, what modules carry becomes a constant."""
    out = []
    for x in x_seq:
        for m in net.modules():
            if isinstance(m, base.MemoryModule):
                for name, value in m._memories.items():
                    m._memories[name] = value.detach() if isinstance(value, torch.Tensor) else value
        out.append(net(x))
    return torch.stack(out)


# ---- the node ---------------------------------------------------------------------------------------------------


@cases
def test_both_step_modes_equal_autograd_with_detached_potentials(v_reset, decay, tau):
    """Values bit for bit; one layer's gradients too, between the step modes and from a record of v."""
    for dtype, record in itertools.product(BOUND, (False, True)):
        o = options(v_reset, decay, tau, store_v_seq=record)
        x, weight = drive(dtype=dtype), torch.randn(STEPS, 53, dtype=dtype)
        host = neuron.LIFNode(**o)
        spikes = detached_loop(host, x)
        assert_fires(spikes)
        wanted, = torch.autograd.grad((spikes * weight).sum(), x)
        functional.reset_net(host)
        full, = torch.autograd.grad((torch.stack([host(t) for t in x]) * weight).sum(), x)
        assert error(full, wanted) > 0.05, "the temporal path carries nothing here"
        found = []
        for mode in "sm":
            node = SLTTLIFNode(**o, step_mode=mode)
            got = node(x) if mode == "m" else torch.stack([node(t) for t in x])
            assert_bit_equal(got, spikes)
            found.append(torch.autograd.grad((got * weight).sum(), x, retain_graph=True)[0])
            if record:
                of_v, = torch.autograd.grad((node.v_seq * weight).sum(), x)
                assert not of_v[spikes == 1].any() or v_reset is None, "a hard reset leaves nothing of the potential"
            assert error(found[-1], wanted) <= BOUND[dtype]
        assert_bit_equal(found[1], found[0], "gradient")


def test_it_is_the_frameworks_class_with_another_step_mode():
    assert issubclass(SLTTLIFNode, neuron.SLTTLIFNode) and neuron.FusedSLTTLIFNode is SLTTLIFNode is FusedSLTTLIFNode
    assert neuron.SLTTLIFNode is not SLTTLIFNode, "a native name was replaced"
    for mode in "sm":
        node, theirs = SLTTLIFNode(step_mode=mode), neuron.SLTTLIFNode()
        assert node.step_mode == mode and node.state_dict().keys() == theirs.state_dict().keys()
        for name in ("tau", "decay_input", "v_threshold", "v_reset", "detach_reset", "store_v_seq"):
            assert getattr(node, name) == getattr(theirs, name), name
        assert type(node.surrogate_function) is type(theirs.surrogate_function)
    node = SLTTLIFNode(3.0, False, 0.6, None, surrogate.ATan(), True, "m", True)
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert (other.tau, other.v_reset, other.step_mode, other.store_v_seq) == (3.0, None, "m", True)
        assert_bit_equal(other(torch.ones(5, 3)), node(torch.ones(5, 3))), functional.reset_net(node)
    with pytest.raises(ValueError, match="step_mode"):
        SLTTLIFNode(step_mode="x")


@cases
def test_the_frameworks_own_node_and_after_retrofit(v_reset, decay, tau):
    """In step mode "s" the native class says the same; retrofit exchanges it, and takes it back."""
    x, weight = drive(), torch.randn(STEPS, 53)
    net = nn.Sequential(neuron.SLTTLIFNode(**options(v_reset, decay, tau)))
    found = []
    for step in (lambda net: net, sj_memext.retrofit, sj_memext.restore):
        functional.reset_net(step(net))
        spikes = torch.stack([net(t) for t in x])
        found.append((spikes.detach(), torch.autograd.grad((spikes * weight).sum(), x)[0]))
        found[-1] += (net[0].v.detach(),)
    assert type(net[0]) is neuron.SLTTLIFNode
    for spikes, gradient, v in found[1:]:
        assert_bit_equal(spikes, found[0][0]), assert_bit_equal(v, found[0][2])
        assert error(gradient, found[0][1]) <= 1e-5  # as everywhere against the framework's own float32


def test_a_sequence_in_two_calls_and_what_is_left():
    """No graph reaches from the second call into the first, which has been freed by then."""
    node, x = SLTTLIFNode(**options(), step_mode="m"), drive()
    weight = torch.randn(STEPS, 53)
    whole, = torch.autograd.grad((node(x) * weight).sum(), x)
    functional.reset_net(node)
    first, = torch.autograd.grad((node(x[:20]) * weight[:20]).sum(), x)
    second, = torch.autograd.grad((node(x[20:]) * weight[20:]).sum(), x)
    assert_bit_equal(first + second, whole)
    node = SLTTLIFNode(**options(v_reset=None), step_mode="m")
    node(x)
    last, = torch.autograd.grad(node.v.sum(), x)
    assert not last[:-1].any() and last[-1].any(), "the final potential belongs to the last step"


def test_eval_mode_and_what_the_kernels_cannot_say():
    x, weight = drive(9), torch.randn(9, 53)
    node = SLTTLIFNode(**options(), step_mode="m")
    trained, = torch.autograd.grad((node(x) * weight).sum(), x)
    functional.reset_net(node.eval())
    assert_bit_equal(torch.autograd.grad((node(x) * weight).sum(), x)[0], trained)

    class Learning(nn.Module):
        """A surrogate function that learns its slope."""

        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(1.0))

        def forward(self, z):
            smooth = torch.atan(torch.pi * self.slope * z) / torch.pi + 0.5  # ATan(2.0) at slope 1
            return smooth + ((z >= 0).to(z) - smooth).detach()

    ours._said.clear()
    found = []
    for mode in "ms":
        node = SLTTLIFNode(**options(surrogate_function=Learning()), step_mode=mode)
        with pytest.warns(RuntimeWarning, match="own equations: the surrogate function learns") if mode == "m" \
                else nullcontext():
            spikes = node(x) if mode == "m" else torch.stack([node(t) for t in x])
        found.append(torch.autograd.grad((spikes * weight).sum(), (x, node.surrogate_function.slope)))
    for a, b in zip(*found):
        assert error(a, b) <= 1e-5 and a.any()
    assert error(found[0][0], trained) <= 1e-5


# ---- nets -------------------------------------------------------------------------------------------------------


def conv(node) -> nn.Sequential:
    net = nn.Sequential(layer.Conv2d(2, 6, 3, padding=1), node(), layer.MaxPool2d(2), layer.Conv2d(6, 8, 3), node(),
                        layer.Flatten(), layer.Linear(32, 5), node(v_reset=None))
    return wake(net, drive(40, (2, 8, 8)).detach())


def sltt(**more):
    return SLTTLIFNode(**options(decay=True, **more) | {"v_threshold": 0.3} | more)


def of_parameters(net, out, weight) -> list[torch.Tensor]:
    return torch.autograd.grad((out * weight).sum(), list(net.parameters()))


@pytest.mark.parametrize("how", [None, "neuron", "compress", "recompute"])
@pytest.mark.parametrize("dtype", BOUND)
def test_a_net_has_one_gradient_in_both_step_modes(how, dtype):
    """Without batch norm; also where the layers keep bits and are run again."""
    net = conv(sltt).to(dtype)
    x, weight = drive(6, (3, 2, 8, 8), dtype).detach(), torch.randn(6, 3, 5, dtype=dtype)
    spikes = detached_loop(net, x)
    assert_fires(spikes)
    wanted = of_parameters(net, spikes, weight)
    if how:
        sj_memext.retrofit(net, how)
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    out = net(x)
    if dtype == torch.float64:  # in float32 a convolution of T N samples rounds otherwise, and may flip a spike
        assert_bit_equal(out, spikes)
    if torch.equal(out, spikes):
        for a, b in zip(of_parameters(net, out, weight), wanted):
            assert error(a, b) <= BOUND[dtype]


@pytest.mark.parametrize("method", ["store", "checkpoint", "reverse", "online"])
@pytest.mark.parametrize("native", [False, True], ids=["ours", "native"])
def test_unrolled(method, native):
    """Whatever method asks for the temporal gradient: these nodes have none. Also several steps at once."""
    net = conv((lambda **o: neuron.SLTTLIFNode(**options(decay=True, **o) | {"v_threshold": 0.3} | o)) if native
               else sltt).double()
    x, weight = drive(9, (3, 2, 8, 8), torch.float64).detach(), torch.randn(9, 3, 5, dtype=torch.float64)
    spikes = detached_loop(net, x)
    wanted = of_parameters(net, spikes, weight)
    more = [{"steps_at_once": 4}] if method in ("checkpoint", "reverse") else []
    more += [{"tolerance": 1e-3}] if method == "reverse" else []
    for extra in [{}, *more]:
        functional.reset_net(net)
        out = unroll(net, x, method, **extra)
        assert_bit_equal(out.detach(), spikes.detach())
        for a, b in zip(of_parameters(net, out, weight), wanted):
            assert error(a, b) <= BOUND[torch.float64], extra


# ---- online_train_step ------------------------------------------------------------------------------------------

TARGET = torch.tensor([0, 3, 1])


def loss_fn(out, t):
    """One that depends on the step."""
    return nn.functional.cross_entropy(out * (1 + 0.1 * t), TARGET)


def trained(net, x, **chosen) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """(gradients, outputs, loss)"""
    net.zero_grad(set_to_none=True)
    functional.reset_net(net)
    out, loss = online_train_step(net, x, loss_fn, **chosen)
    assert not out.requires_grad and not loss.requires_grad
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for m in net.modules()
                   if isinstance(m, base.MemoryModule) for v in m._memories.values())
    return [p.grad.clone() for p in net.parameters()], out, loss


def make(cls, **more):
    return lambda **o: cls(**{"v_threshold": 0.3, "v_reset": -0.2, "surrogate_function": surrogate.ATan(), **more, **o})


NODES = {"IF": make(neuron.IFNode), "LIF": make(neuron.LIFNode, tau=1.7), "PLIF": make(neuron.ParametricLIFNode),
         "KLIF": make(neuron.KLIFNode), "FusedIF": make(FusedIFNode), "FusedLIF": make(FusedLIFNode, tau=1.7),
         "SLTT": sltt, "QIF": make(neuron.QIFNode, v_threshold=1.0)}


@pytest.mark.parametrize("name", NODES)
def test_sltt_is_autograd_with_detached_states(name):
    """To the last bit: it is the same graph, step by step. Eq. 12: the loss is the mean over the steps."""
    net = conv(NODES[name])
    x = drive(8, (3, 2, 8, 8)).detach()
    found, out, loss = trained(net, x)
    functional.reset_net(net)
    net.zero_grad(set_to_none=True)
    spikes = detached_loop(net, x)
    losses = [loss_fn(s, t) for t, s in enumerate(spikes)]
    wanted = torch.autograd.grad(sum(losses) / 8, list(net.parameters()), allow_unused=True)
    assert_bit_equal(out, spikes.detach())
    assert error(loss, torch.stack(losses).mean()) < 1e-6  # one rounding of a mean of 8
    for a, b in zip(found, wanted):
        assert error(a, b) <= 1e-5  # sums over 8 steps in another order
    assert any(g.abs().sum() > 0 for g in found)


def test_sltt_k_is_the_sum_over_the_chosen_steps():
    """So the mean over all choices of K of T is K/T of SLTT's; states do not depend on what was chosen."""
    net, x = conv(NODES["LIF"]).double(), drive(6, (3, 2, 8, 8), torch.float64).detach()
    every, out, _ = trained(net, x)
    alone = [trained(net, x, steps=[t])[0] for t in range(6)]
    for g, *parts in zip(every, *alone):
        assert error(sum(parts), g) <= 1e-12  # float64 sums of six
    total = [torch.zeros_like(g) for g in every]
    choices = list(itertools.combinations(range(6), 2))
    for chosen in choices:
        found, same, _ = trained(net, x, steps=chosen)
        assert_bit_equal(same, out)
        for g, s, a, b in zip(found, total, alone[chosen[0]], alone[chosen[1]]):
            assert error(g, a + b) <= 1e-12
            s += g / len(choices)
    for mean, g in zip(total, every):
        assert error(mean, g * 2 / 6) <= 1e-12
    torch.manual_seed(1)
    found, *_ = trained(net, x, k=2)
    torch.manual_seed(1)
    drawn = sorted(torch.randperm(6)[:2].tolist())
    assert all(torch.equal(a, b) for a, b in zip(found, trained(net, x, steps=drawn)[0]))
    assert all(torch.equal(a, b) for a, b in zip(every, trained(net, x, k=6)[0]))


def test_steps_that_are_not_chosen_move_states_and_batch_norm_on():
    net = nn.Sequential(layer.Conv2d(2, 5, 3), layer.BatchNorm2d(5), NODES["LIF"](), layer.Flatten(),
                        layer.Linear(180, 5))
    other, graphs = copy.deepcopy(net), []
    net.register_forward_hook(lambda m, x, out: graphs.append(out.requires_grad))
    x = drive(7, (3, 2, 8, 8)).detach()
    trained(net, x, steps=[2])
    assert graphs == [t == 2 for t in range(7)], "a step that is not chosen builds no graph"
    trained(other, x)
    assert net[1].num_batches_tracked == 7
    for (name, a), b in zip(net.state_dict().items(), other.state_dict().values()):
        assert_bit_equal(a, b, name)
    assert_bit_equal(net[2].v, other[2].v)


@pytest.mark.parametrize("chosen", [{}, {"k": 3}], ids=["SLTT", "SLTT-K"])
def test_hooks_run_once_a_step_and_gradients_add_up(chosen):
    net, seen = conv(NODES["LIF"]), []
    x = drive(6, (3, 2, 8, 8)).detach()
    net[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(1))
    torch.manual_seed(3)
    once = trained(net, x, **chosen)[0]
    assert len(seen) == chosen.get("k", 6), "one backward a step, as the paper's algorithm has it"
    torch.manual_seed(3)
    functional.reset_net(net)
    online_train_step(net, x, loss_fn, **chosen)  # without zero_grad
    for p, g in zip(net.parameters(), once):
        assert error(p.grad, 2 * g) <= 1e-6  # one more float32 addition


def test_memory_does_not_grow_with_the_steps():
    net = conv(sltt)
    peaks = []
    for steps in (10, 80):
        x = drive(steps, (3, 2, 8, 8)).detach()
        trained(net, x[:2])
        # a view for each output is not ours to save: [T, N, 5] floats, twice while they are stacked
        outputs = 2 * steps * 15 * 4
        peaks.append(measure(lambda x=x: trained(net, x)).peak_bytes - outputs)
    assert peaks[1] <= 1.02 * peaks[0], peaks


@pytest.mark.parametrize("given, said", [({"k": 0}, "k is 0"), ({"k": 7}, "k is 7; a number of steps from 1 to 6"),
                                         ({"steps": [6]}, r"steps is \[6\]; steps from 0 to 5"),
                                         ({"steps": []}, r"steps is \[\]"),
                                         ({"k": 1, "steps": [1]}, "give one of them")])
def test_refused(given, said):
    with pytest.raises(MemextError, match=said):
        online_train_step(conv(sltt), torch.zeros(6, 3, 2, 8, 8), loss_fn, **given)


# ---- the framework's OTTT ---------------------------------------------------------------------------------------


def test_ottt_beside_ours():
    """The framework's nodes hand a trace beside the spike; online_train_step is their training loop, too."""
    o = dict(tau=2.0, v_threshold=0.3, surrogate_function=surrogate.ATan())
    net = layer.OTTTSequential(layer.Linear(6, 9), neuron.OTTTLIFNode(**o), layer.Linear(9, 9), neuron.OTTTLIFNode(**o),
                               layer.Linear(9, 5))
    x = drive(8, (3, 6)).detach()
    outputs = []
    for t, x_t in enumerate(x):  # as in the framework's tutorial
        out = net(x_t)
        outputs.append(out.detach())
        (loss_fn(out, t) / 8).backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    found, out, _ = trained(net, x)
    assert_bit_equal(out, torch.stack(outputs))
    for a, b in zip(found, wanted):
        assert_bit_equal(a, b)
    assert type(net[1]) is neuron.OTTTLIFNode and net[1].trace.any()
    both = nn.Sequential(layer.Linear(6, 6), NODES["FusedLIF"](), net)
    assert any(g.abs().sum() > 0 for g in trained(both, x)[0][:2]), "the layer before has a gradient"
