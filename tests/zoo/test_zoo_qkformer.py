"""QKFormer: spikes summed over channels go into a neuron, and its spikes mask others."""
import pytest
from zoo_check import assert_awake, assert_saves

NAME = "QKFormer"
AT_MOST = {"neuron": (0.89, 0.84), "substitute": (0.89, 0.84), "compress": (0.70, 0.69), "recompute": (0.075, 0.25),
           "recompute, memory": (0.075, 0.25)}  # as in test_zoo_spikformer.py


def test_it_fires():
    assert_awake(NAME)


@pytest.mark.parametrize("method", AT_MOST)
def test_three_steps_are_those_of_the_native_net_in_less_memory(method):
    assert_saves(NAME, method, *AT_MOST[method])
