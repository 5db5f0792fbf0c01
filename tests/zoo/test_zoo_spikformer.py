"""Spikformer's code, written for SpikingJelly 0.0.0.0.12 and unmodified."""
import pytest
from zoo_check import assert_awake, assert_saves, native

NAME = "spikformer"
# Shares of native's bytes (kept for backward, peak): those measured and a tenth more; all are sums of tensor sizes.
AT_MOST = {"neuron": (0.91, 0.86), "substitute": (0.91, 0.86), "compress": (0.59, 0.59), "recompute": (0.17, 0.28),
           "recompute, memory": (0.16, 0.28)}


def test_it_fires():
    assert_awake(NAME)


@pytest.mark.parametrize("method", AT_MOST)
def test_three_steps_are_those_of_the_native_net_in_less_memory(method):
    assert_saves(NAME, method, *AT_MOST[method])


def test_native_is_multi_step_under_its_old_name():
    nodes = [m for m in native(NAME).net.modules() if type(m).__name__ == "MultiStepLIFNode"]
    assert len(nodes) == 11 and all(node.step_mode == "m" for node in nodes)
