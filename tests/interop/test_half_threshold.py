"""FusedHalfThresholdIFNode, the neuron of converted ANNs, against SpikingJelly's and a loop of its own in float64."""
import copy
import pickle

import pytest
import torch
from helpers import GRADIENT, assert_bit_equal, assert_fires, error
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from shared_core import registry
from sj_memext import report, restore, retrofit, substitute
from sj_memext.half_threshold import FusedHalfThresholdIFNode
from sj_memext.neuron import overrides

STEPS, NEURONS = 37, 53  # more than a block of 32; prime
OPTIONS = {"v_threshold": 0.7, "surrogate_function": surrogate.ATan(2.0)}


def drive(dtype=torch.float32, shape=(NEURONS,)):
    """A third of the first inputs lies on the threshold, or one ulp beside it, from half of it."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(STEPS, *shape, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    exact = torch.tensor(0.7, dtype=torch.float32) - torch.tensor(0.35, dtype=torch.float32)
    x[0].view(-1)[::3] = exact.double()
    x[0].view(-1)[1::3] = torch.nextafter(exact, torch.tensor(-1.0)).double()
    return x.to(dtype)


def run(node, x):
    return node(x) if node.step_mode == "m" else torch.stack([node(step) for step in x])


def reference(x, weights, detach):
    """h = v + x, s = [h >= theta], v = h - s theta, from v = theta / 2; float64, spikes of the float32 run."""
    v32, fired = torch.full(x.shape[1:], 0.35), []
    for step in x:
        h = v32 + step
        fired.append((h >= 0.7).float())
        v32 = h - fired[-1] * 0.7
    x64, v, out = x.double().requires_grad_(), torch.full(x.shape[1:], 0.35, dtype=torch.float64), []
    for step, s in zip(x64, fired):
        h = v + step
        s = s.double() + _Slope.apply(h - 0.7)
        v = h - (s.detach() if detach else s) * 0.7
        out.append(s)
    out = torch.stack(out)
    (out * weights.double()).sum().backward()
    return torch.stack(fired), x64.grad


class _Slope(torch.autograd.Function):
    """0, with the derivative of ATan(alpha=2)."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.zeros_like(z)

    @staticmethod
    def backward(ctx, grad):
        z, = ctx.saved_tensors
        return grad / (1 + (torch.pi * z) ** 2)


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("detach", [False, True])
def test_values_and_gradients(mode, detach):
    x, weights = drive(), torch.randn(STEPS, NEURONS)
    found = []
    for cls in (neuron.HalfThresholdIFNode, FusedHalfThresholdIFNode):
        node, leaf = cls(**OPTIONS, detach_reset=detach, step_mode=mode), x.clone().requires_grad_()
        out = run(node, leaf)
        (out * weights).sum().backward()
        found.append((out.detach(), node.v.detach(), leaf.grad))
    (wanted, v, grad), (spikes, ours, got) = found
    assert_fires(spikes)
    assert_bit_equal(spikes, wanted)
    assert_bit_equal(ours, v)
    truth, exact = reference(x, weights, detach)
    assert torch.equal(truth, spikes) and error(got, exact) <= max(GRADIENT, 2 * error(grad, exact))


def test_double_precision_and_v_seq():
    x = drive(torch.float64)
    nodes = [cls(**OPTIONS, step_mode="m", store_v_seq=True)
             for cls in (neuron.HalfThresholdIFNode, FusedHalfThresholdIFNode)]
    outs = [node(x) for node in nodes]
    assert_bit_equal(outs[1], outs[0])
    assert_bit_equal(nodes[1].v_seq, nodes[0].v_seq)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_a_float32_membrane(dtype):
    x = drive(dtype)
    node, wide = (FusedHalfThresholdIFNode(**OPTIONS, step_mode="m") for _ in range(2))
    out = node(x)
    assert out.dtype == dtype and node.v.dtype == torch.float32 and torch.equal(out.float(), wide(x.float()))


@pytest.mark.parametrize("mode", "ms")
def test_it_starts_at_half_its_threshold_whenever_it_starts(mode):
    """New, after reset, and where the shape changes, as in the framework."""
    pair = [cls(v_threshold=0.8, step_mode=mode) for cls in (neuron.HalfThresholdIFNode, FusedHalfThresholdIFNode)]
    assert [node.v for node in pair] == [0.4, 0.4]
    first = torch.full((1, 4), 0.39)
    for step in (first, first, torch.full((1, 6), 0.41), torch.full((1, 6), 0.39)):
        given = step if mode == "s" else step[None]
        wanted, got = (node(given) for node in pair)
        assert torch.equal(got, wanted) and torch.equal(pair[1].v, pair[0].v)
    for node in pair:
        functional.reset_net(node)
        assert node.v == 0.4
    x = torch.full((3, 2, 5), 0.41)
    assert torch.equal(run(pair[1], x), run(pair[0], x)) and pair[1].v.shape == (2, 5)
    for node in pair:  # a threshold set later counts for the next start at a new shape only
        node.v_threshold = 2.0
    wider = torch.full((2, 7), 0.9) if mode == "s" else torch.full((1, 2, 7), 0.9)
    assert torch.equal(pair[1](wider), pair[0](wider)) and torch.equal(pair[1].v, pair[0].v)


def test_in_and_out_of_a_net():
    net = nn.Sequential(nn.Linear(6, 20), neuron.HalfThresholdIFNode(0.3, step_mode="m"), nn.Linear(20, 5),
                        neuron.HalfThresholdIFNode(0.2, step_mode="m"))
    x, keys = torch.randn(9, 4, 6), list(net.state_dict())
    wanted = net(x)
    functional.reset_net(net)
    for method in ("neuron", "compress", "recompute"):
        retrofit(net, method)
        assert type(net[1]) is FusedHalfThresholdIFNode and isinstance(net[3], neuron.HalfThresholdIFNode)
        assert torch.equal(net(x), wanted) and list(net.state_dict()) == keys and not report(net).skipped
        functional.reset_net(net)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(x), wanted) and type(restore(other)[1]) is neuron.HalfThresholdIFNode
    assert type(restore(net)[1]) is neuron.HalfThresholdIFNode


def test_registered_and_substituted():
    with substitute("neuron"):
        node = neuron.HalfThresholdIFNode(0.5)
    assert type(node) is FusedHalfThresholdIFNode is neuron.FusedHalfThresholdIFNode
    row, = [row for row in registry.neurons("spikingjelly") if row.name == "FusedHalfThresholdIFNode"]
    assert row.host is neuron.HalfThresholdIFNode
    assert overrides(FusedHalfThresholdIFNode, neuron.HalfThresholdIFNode) == []
    assert vars(FusedHalfThresholdIFNode()).keys() == vars(neuron.HalfThresholdIFNode()).keys()


def test_a_learnable_surrogate_runs_on_the_framework_s_equations():
    class Learns(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, z):
            return surrogate.ATan(2.0)(z * self.scale)

    x, grads = drive(), []
    for cls in (neuron.HalfThresholdIFNode, FusedHalfThresholdIFNode):
        node = cls(0.7, surrogate_function=Learns(), step_mode="m")
        node(x).square().sum().backward()
        grads.append(node.surrogate_function.scale.grad)
    assert grads[0] != 0 and torch.equal(*grads)
