"""EfficientLIF-Net's VGG: time looped in forward, and one neuron object called two or three times in every step."""
import pytest
import torch
from zoo_check import METHODS, assert_awake, assert_saves
from zoo_families import FAMILIES, T

import sj_memext

NAME = "membrane-shared VGG"
AT_MOST = {"neuron": (0.95, 0.91), "substitute": (0.95, 0.91), "compress": (0.61, 0.65), "recompute": (0.37, 0.46),
           "recompute, memory": (0.29, 0.40)}  # as in test_zoo_spikformer.py


def test_it_fires():
    assert_awake(NAME)


@pytest.mark.parametrize("method", AT_MOST)
def test_three_steps_are_those_of_the_native_net_in_less_memory(method):
    assert_saves(NAME, method, *AT_MOST[method])


def _calls_and_state(prepare=lambda net: None):
    """How often lif5 was called, and the membrane that its last call left."""
    net, batches = FAMILIES[NAME].make()
    prepare(net)
    calls = []
    net.lif5.register_forward_hook(lambda module, args, out: calls.append(out.detach()))
    net(batches[0][0])
    return calls, net.lif5.v.detach()


@pytest.mark.parametrize("method", METHODS)
def test_every_call_goes_on_with_the_membrane_of_the_call_before(method):
    how, options = METHODS[method]
    calls, v = _calls_and_state()
    ours, v2 = _calls_and_state(lambda net: sj_memext.retrofit(net, how, **options))
    assert len(calls) == len(ours) == 3 * T and v.count_nonzero()
    assert all(torch.equal(a, b) for a, b in zip(ours, calls)) and torch.equal(v2, v)
