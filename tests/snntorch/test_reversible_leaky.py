"""ReversibleLeaky: RevSNN's neuron under snnTorch's conventions."""
from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import reversible_reference as paper
import snntorch
import torch
from helpers import assert_bit_equal, error
from snntorch import surrogate, utils
from torch import nn

import snntorch_memext
from shared_core.errors import MemextError
from shared_core.reversible.neuron import Equations
from snntorch_memext.neurons import ReversibleLeaky

BETA = 0.375  # exact: 1 / (1 - beta) = 1.6
EQ = Equations(3, 1.6, 0.2, 0.9, 0.5, -0.25, strict=True)


def leaky(**options) -> ReversibleLeaky:
    return ReversibleLeaky(**{**dict(beta=BETA, threshold=0.5, groups=3, alpha=0.2, scale=0.9, reset_value=-0.25),
                              **options})


def inputs(*shape) -> torch.Tensor:
    return torch.randn(*(shape or (6, 5, 12))) * 0.8 + 0.3


def reference(x):
    return paper.forward(EQ, x, torch.zeros_like(x[0]), paper.ATAN)  # snnTorch starts from 0, not from the reset value


def test_steps_and_sequences_are_the_papers_neuron():
    x, lif = inputs(), leaky()
    wanted, end, before, fired = reference(x)
    assert 0.05 < fired.mean() < 0.9
    spk_seq, mem = lif.multi_step(x)
    assert_bit_equal(spk_seq, wanted)
    assert_bit_equal(mem, end)
    assert_bit_equal(lif.mem, end)
    lif, mem, seen = leaky(), torch.zeros(5, 12), []
    for x_t in x:
        spk, mem = lif(x_t, mem)
        seen.append(spk)
    assert_bit_equal(torch.stack(seen), wanted)
    assert_bit_equal(mem, end)
    hidden = leaky(init_hidden=True)
    assert_bit_equal(torch.stack([hidden(x_t) for x_t in x]), wanted)
    with pytest.raises(TypeError, match="init_hidden"):
        hidden(x[0], mem)
    assert len(leaky(init_hidden=True, output=True)(x[0])) == 2
    found, potentials = lif.invert(wanted, potentials=True)
    assert_bit_equal(found, paper.gridded(x, 0.9) / 0.9)
    assert_bit_equal(potentials, before)
    assert lif.check_invertible(x) and not lif.check_invertible(x * 1e3)


def test_gradients():
    x, weights = inputs().requires_grad_(), (torch.randn(6, 5, 12), torch.randn(5, 12))
    (wanted,) = torch.autograd.grad(
        (reference(x)[0] * weights[0]).sum() + (reference(x)[1] * weights[1]).sum(), x)
    lif, stepped, mem = leaky(), leaky(), torch.zeros(5, 12)
    spk_seq, end = lif.multi_step(x)
    (got,) = torch.autograd.grad((spk_seq * weights[0]).sum() + (end * weights[1]).sum(), x)
    loss = 0
    for x_t, w in zip(x, weights[0]):
        spk, mem = stepped(x_t, mem)
        loss = loss + (spk * w).sum()
    (again,) = torch.autograd.grad(loss + (mem * weights[1]).sum(), x)
    assert error(got, wanted) <= 1e-5 and error(again, wanted) <= 1e-5  # float32 against float32, measured 1e-7


def test_the_frameworks_resets_reach_it():
    lif, x = leaky(init_hidden=True), inputs()
    first = lif(x[0])
    utils.reset(nn.Sequential(lif))  # it looks at a network's children
    assert not lif.mem.any()
    assert_bit_equal(lif(x[0]), first)
    lif.reset_mem()
    assert_bit_equal(lif(x[0]), first)
    lif(inputs(2, 12))
    assert lif.mem.shape == (2, 12)


def test_copies_pickles_checkpoints_and_the_list_of_instances():
    lif, x = leaky(spike_grad=surrogate.fast_sigmoid(slope=10)), inputs()
    wanted = lif.multi_step(x)[0]
    lif.reset_mem()
    for other in (copy.deepcopy(lif), pickle.loads(pickle.dumps(lif))):
        assert_bit_equal(other.multi_step(x, torch.zeros(5, 12))[0], wanted)
    assert list(lif.state_dict()) == list(snntorch.Leaky(beta=0.5).state_dict())
    changed = leaky(beta=0.875)
    changed.load_state_dict(lif.state_dict())
    assert_bit_equal(changed.multi_step(x)[0], wanted)  # beta of the checkpoint
    assert snntorch.ReversibleLeaky is ReversibleLeaky
    gone = weakref.ref(leaky())
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("options,text", [
    (dict(beta=1.0), "0 <= beta < 1"), (dict(beta=torch.rand(4)), "one number"), (dict(groups=1), ">= 2"),
    (dict(scale=0.0), "beta is 0"), (dict(alpha=None), "finite")])
def test_constants_out_of_range(options, text):
    with pytest.raises(MemextError, match=text):
        leaky(**options)


def test_odd_sizes_are_named():
    with pytest.raises(MemextError, match="7 elements"):
        leaky()(inputs(5, 7))
    y, _ = leaky(split_dim=1)(inputs(2, 6, 5, 7))
    assert y.shape == (2, 6, 5, 7)


@pytest.mark.parametrize("spike_grad", [None, surrogate.fast_sigmoid(), surrogate.sigmoid(slope=5),
                                        snntorch_memext.surrogate.triangle()], ids=["atan", "fast_sigmoid", "sigmoid",
                                                                                   "triangle"])
def test_it_trains(spike_grad):
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(16, 32), ReversibleLeaky(0.5, spike_grad=spike_grad), nn.Linear(32, 2)])
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    label = torch.arange(64) % 2
    x = torch.randn(64, 16) * 0.5
    x[:, :4] += label[:, None] * 1.5
    losses = []
    for _ in range(30):
        net[1].reset_mem()
        spk, _ = net[1].multi_step(net[0](x.expand(6, -1, -1)), torch.zeros(64, 32))
        loss = nn.functional.cross_entropy(net[2](spk).mean(0), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
