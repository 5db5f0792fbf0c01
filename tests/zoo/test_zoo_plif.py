"""PLIF nets: single steps looped in forward, and a time constant per layer that learns."""
import pytest
import torch
from zoo_check import assert_awake, assert_saves, native, retrofitted

AT_MOST = {  # as in test_zoo_spikformer.py
    "PLIF net, static": {"neuron": (0.75, 0.74), "substitute": (0.75, 0.74), "compress": (0.37, 0.52),
                         "recompute": (0.27, 0.45), "recompute, memory": (0.27, 0.45)},
    "PLIF net, events": {"neuron": (0.90, 0.87), "substitute": (0.90, 0.87), "compress": (0.57, 0.66),
                         "recompute": (0.32, 0.47), "recompute, memory": (0.32, 0.47)},
}
TIME_CONSTANT = 1e-4  # relative: one number each, a sum over all neurons and steps in which terms cancel
CASES = [(name, method) for name, methods in AT_MOST.items() for method in methods]


@pytest.mark.parametrize("name", AT_MOST)
def test_it_fires(name):
    assert_awake(name)


@pytest.mark.parametrize("name, method", CASES)
def test_three_steps_are_those_of_the_native_net_in_less_memory(name, method):
    assert_saves(name, method, *AT_MOST[name][method])


@pytest.mark.parametrize("method", AT_MOST["PLIF net, static"])
def test_the_time_constants_learn_the_same(method):
    found = [{name: p.grad for name, p in run.net.named_parameters() if name.endswith(".w")}
             for run in (native("PLIF net, static"), retrofitted("PLIF net, static", method))]
    theirs, ours = found
    assert len(theirs) == 4 and all(grad.abs() > 0 for grad in theirs.values())
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, rtol=TIME_CONSTANT, atol=0), name
