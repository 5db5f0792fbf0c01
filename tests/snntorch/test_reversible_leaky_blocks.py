"""Reversible blocks of snnTorch's Leaky, which hold their membranes, called step by step."""
import copy

import pytest
import snntorch
import torch
from helpers import assert_bit_equal
from reversible_nets import assert_gradients_close, gradients, on_grid, reference, weighted
from snntorch import utils
from torch import nn

import snntorch_memext
from shared_core.errors import MemextError
from shared_core.temporal import unroll
from snntorch_memext.layers import ReversibleBlock, ReversibleSequence

CLOSE = 1e-6  # the same operations; two steps' gradients of a weight may be added in another order


def branch(width, kind, reset):
    make = {"Leaky": lambda: snntorch.Leaky(0.8, threshold=0.75, init_hidden=True, reset_mechanism=reset,
                                            learn_beta=reset == "subtract"),
            "Synaptic": lambda: snntorch.Synaptic(0.7, 0.8, threshold=1.2, init_hidden=True, reset_mechanism=reset)}
    return nn.Sequential(make[kind](), nn.Conv2d(width, width, 3, padding=1))


def sequence(depth, kind="Leaky", reset="subtract", width=3):
    torch.manual_seed(depth)
    return ReversibleSequence([ReversibleBlock(branch(width, kind, reset), branch(width, kind, reset))
                               for _ in range(depth)])


def batch(steps=5):
    return torch.randn(steps, 2, 6, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


def through_time(net, x, forward):
    utils.reset(net)
    for m in net.modules():
        if isinstance(m, (snntorch.Leaky, snntorch.Synaptic)):
            m.reset_mem()
    net.zero_grad()
    leaf = x.clone().requires_grad_()
    y = forward(net, leaf)
    weighted(y).backward()
    return y.detach(), gradients(net, leaf)


@pytest.mark.parametrize("kind, reset", [("Leaky", "subtract"), ("Leaky", "zero"), ("Synaptic", "subtract")])
@pytest.mark.parametrize("depth", [1, 8])
def test_values_and_gradients_are_those_of_the_equation(depth, kind, reset):
    net, x, rates = sequence(depth, kind, reset), batch(), []
    other = copy.deepcopy(net)
    hooks = [m.register_forward_hook(lambda m, a, out: rates.append(out.detach().mean().item()))
             for m in other.modules() if isinstance(m, (snntorch.Leaky, snntorch.Synaptic))]
    wanted_y, wanted = through_time(other, x, lambda n, x: torch.stack([reference(n.blocks, x_t, 1) for x_t in x]))
    assert 0.1 < sum(rates) / len(rates) < 0.4, sum(rates) / len(rates)
    for hook in hooks:
        hook.remove()
    y, found = through_time(net, x, lambda n, x: torch.stack([n(x_t) for x_t in x]))
    assert_bit_equal(y, wanted_y)
    assert_gradients_close(found, wanted, CLOSE)


def test_unrolled():
    net, x = sequence(2), batch(6)
    y, wanted = through_time(copy.deepcopy(net), x, lambda n, x: torch.stack([n(x_t) for x_t in x]))
    y2, found = through_time(net, x, lambda n, x: unroll(n, x))
    assert_bit_equal(y2, y)
    assert_gradients_close(found, wanted, 1e-5)  # the contract of unroll


def test_retrofitted_and_inverted():
    net, x = sequence(3), batch()
    y, wanted = through_time(copy.deepcopy(net), x, lambda n, x: torch.stack([n(x_t) for x_t in x]))
    snntorch_memext.retrofit(net, "neuron")
    y2, found = through_time(net, x, lambda n, x: torch.stack([n(x_t) for x_t in x]))
    assert_bit_equal(y2, y)
    assert_gradients_close(found, wanted, 1e-5)  # the fused gradient's own contract
    assert net.check_invertible(x[0])
    for m in net.modules():
        if isinstance(m, snntorch.Leaky):
            m.reset_mem()
    with torch.no_grad():
        first = copy.deepcopy(net)(x[0])
        assert_bit_equal(net.invert(first), on_grid(x[0]))


def test_a_neuron_that_returns_its_membrane_is_refused():
    leaky = snntorch.Leaky(0.8, init_hidden=True, output=True)
    with pytest.raises(MemextError, match="F: returned tuple; one tensor"):
        ReversibleBlock(leaky, nn.Identity())(torch.randn(2, 4))
