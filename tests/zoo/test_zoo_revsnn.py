"""RevSNN's ResNet, with an autograd Function of its own: our neurons run inside of its second forward pass."""
import pytest
import torch
from zoo_check import METHODS, SAME, assert_awake, assert_saves
from zoo_families import FAMILIES

import sj_memext

NAME = "reversible ResNet"
# As in test_zoo_spikformer.py. The repository itself keeps a sequence's output only; what is left to save is outside of
# the sequences, and the peak is one block with its graph, which is theirs.
AT_MOST = {"neuron": (0.61, 0.97), "substitute": (0.61, 0.97), "compress": (0.43, 0.97), "recompute": (0.29, 0.95),
           "recompute, memory": (0.29, 0.95)}


def test_it_fires():
    assert_awake(NAME)


@pytest.mark.parametrize("method", AT_MOST)
def test_three_steps_are_those_of_the_native_net_in_less_memory(method):
    assert_saves(NAME, method, *AT_MOST[method])


def _plain(blocks, x):
    """The same blocks without the Function: what autograd would keep, and find."""
    for block in blocks:
        x1, x2 = torch.chunk(x, 2, dim=2)
        y1 = x1 + block.f_block(x2)
        x = torch.cat([y1, x2 + block.g_block(y1)], dim=2)
    return x


@pytest.mark.parametrize("method", METHODS)
def test_gradients_inside_the_sequence_are_those_of_plain_autograd(method):
    found, gradients = FAMILIES[NAME], []
    how, options = METHODS[method]
    for plain in (True, False):
        net, _ = found.make()
        if not plain:
            sj_memext.retrofit(net, how, **options)
        x = torch.randn(4, 2, 16, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = _plain(net.stage1.reversible_blocks, x) if plain else net.stage1(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.reset(net)
        gradients.append(torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in net.stage1.parameters())]))
    wanted, got = gradients
    assert wanted.count_nonzero() and (got - wanted).norm() <= SAME * wanted.norm()
