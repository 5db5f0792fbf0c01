"""retrofit against the framework's own neurons, on whichever SpikingJelly is installed: 2.0.0 or 0.0.0.0.14.

Written so that it runs on both (no backend=, no store_v_seq); `make test-matrix` runs it on each. The old release's
nodes run their own Python steps here, so what is compared is that release's values.
"""
from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers import error
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_memext
from shared_core.errors import MemextError
from sj_memext import _host

T, N = 6, 3
SURROGATES = ("ATan", "Sigmoid", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "NonzeroSignLogAbs", "Erf", "S2NN",
              "PiecewiseLeakyReLU", "QPseudoSpike", "LeakyKReLU", "LogTailedReLU")
CLOSE = 1e-5  # of gradients, norm-relative: rounding of a float32 sum over T steps and a layer's batch
METHODS = ("neuron", "compress", "recompute")


def nodes():
    for sg in SURROGATES:
        yield f"LIF-{sg}", lambda sg=sg: neuron.LIFNode(1.7, v_threshold=0.6,
                                                        surrogate_function=getattr(surrogate, sg)())
    for reset, detach in itertools.product((None, -0.3, 0.0), (False, True)):
        common = {"v_threshold": 0.6, "v_reset": reset, "detach_reset": detach, "surrogate_function": surrogate.ATan()}
        yield f"IF-{reset}-{detach}", lambda c=common: neuron.IFNode(**c)
        for decay in (True, False):
            yield f"LIF-{reset}-{detach}-{decay}", lambda c=common, d=decay: neuron.LIFNode(1.7, d, **c)
            yield f"PLIF-{reset}-{detach}-{decay}", lambda c=common, d=decay: neuron.ParametricLIFNode(1.7, d, **c)
            if reset is not None:  # 0.0.0.0.14's KLIFNode raises without a reset value
                yield f"KLIF-{reset}-{detach}-{decay}", lambda c=common, d=decay: neuron.KLIFNode(False, 1.7, d, **c)


CASES = dict(nodes())


def run(net, x, mode):
    functional.set_step_mode(net, mode)
    functional.reset_net(net)
    x = x.clone().requires_grad_()
    y = torch.stack([net(step) for step in x]) if mode == "s" else net(x)
    y = torch.cat([y, net(x) if mode == "m" else torch.stack([net(step) for step in x])])  # the state goes on
    (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    return y.detach(), [x.grad, *(p.grad for p in net.parameters())], [m.v for m in net.modules() if hasattr(m, "v")]


def compare(net, x, mode, method):
    ours = sj_memext.retrofit(copy.deepcopy(net), method)
    assert sj_memext.report(ours).changed
    keys, isinstances = list(net.state_dict()), [type(m) for m in net.modules()]
    y, grads, states = run(net, x, mode)
    for _ in range(2):  # twice: after a reset everything is as at first
        ours.zero_grad()
        got_y, got_grads, got_states = run(ours, x, mode)
        assert torch.equal(got_y, y) and 0.05 < float((y != 0).float().mean()) < 0.95
        for got, wanted in zip(got_grads, grads, strict=True):
            assert error(got, wanted) < CLOSE
        for got, wanted in zip(got_states, states, strict=True):
            assert torch.allclose(got, wanted, atol=1e-6)
    assert list(ours.state_dict()) == keys
    assert all(isinstance(m, cls) for m, cls in zip(ours.modules(), isinstances))
    sj_memext.restore(ours)
    assert [type(m) for m in ours.modules()] == isinstances


@pytest.mark.slow  # 30 s; on 2.0.0 tests/sj has more of it
@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("case", CASES)
def test_a_node(case, mode):
    if "NonzeroSignLogAbs" in case and not _host.IS_2:
        pytest.skip("0.0.0.0.14's own gradient of it raises a RuntimeError")
    torch.manual_seed(3)
    compare(nn.Sequential(CASES[case]()), torch.randn(T, N, 5) + 0.4, mode, "neuron")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6)
        self.lif1 = neuron.LIFNode(v_threshold=0.5, detach_reset=True, surrogate_function=surrogate.ATan())
        self.conv2, self.bn2 = layer.Conv2d(6, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6)
        self.lif2 = neuron.ParametricLIFNode(v_threshold=0.4, v_reset=None)
        self.pool, self.flatten = layer.MaxPool2d(2), layer.Flatten()
        self.fc, self.lif3 = layer.Linear(24, 4), neuron.IFNode(0.4)

    def forward(self, x):
        x = self.lif1(self.bn1(self.conv1(x)))
        x = self.pool(self.lif2(self.bn2(self.conv2(x))) + x)
        return self.lif3(self.fc(self.flatten(x)))


@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("method", METHODS)
def test_a_net(method, mode):
    torch.manual_seed(5)
    compare(Block(), torch.rand(T, N, 2, 4, 4) * 2, mode, method)


def test_substitute_makes_ours():
    with sj_memext.substitute() as report:
        net = Block()
    assert len(report.changed) == 3 and "Fused" in type(net.lif1).__name__


def test_a_surrogate_of_ours():
    torch.manual_seed(3)
    made = neuron.LIFNode(1.7, v_threshold=0.6, surrogate_function=sj_memext.surrogate.Triangle(gamma=1.3))
    compare(nn.Sequential(made), torch.randn(T, N, 5) + 0.4, "m", "neuron")


def test_own_equations_are_left_alone():
    class Own(neuron.LIFNode):
        def neuronal_charge(self, x):
            self.v = 0.5 * self.v + x

    with pytest.raises(MemextError, match="neuronal_charge"):
        sj_memext.retrofit(nn.Sequential(Own()), "neuron")


def test_what_the_old_release_does_not_have_says_so():
    if _host.IS_2:
        pytest.skip("SpikingJelly 2 has all of it")
    with pytest.raises(MemextError, match=r"0\.0\.0\.0\.14 has no SLTTLIFNode.*retrofit"):
        sj_memext.neuron.SLTTLIFNode()
    with pytest.raises(MemextError, match="has no Rect"):
        surrogate.Rect()


def test_old_names_are_the_frameworks_own_where_it_has_them():
    if _host.IS_2:
        pytest.skip("SpikingJelly 2 has none")
    from spikingjelly.clock_driven import neuron as old

    import sj_memext.compat  # on SpikingJelly 2 it would change the framework for the tests that follow
    assert not sj_memext.compat.installed() and old.__file__
