"""Spike-driven transformer: `spike_mode`, and spikes that are handed out through `hook`."""
import pytest
import torch
from zoo_check import METHODS, assert_awake, assert_saves
from zoo_families import FAMILIES

import sj_memext

# As in test_zoo_spikformer.py.
AT_MOST = {
    "spike-driven transformer": {
        "neuron": (0.90, 0.77), "substitute": (0.90, 0.77), "compress": (0.68, 0.65), "recompute": (0.21, 0.33),
        "recompute, memory": (0.18, 0.31)},
    "spike-driven transformer, PLIF": {
        "neuron": (0.73, 0.66), "substitute": (0.73, 0.66), "compress": (0.55, 0.56), "recompute": (0.17, 0.28),
        "recompute, memory": (0.14, 0.26)},
}
CASES = [(name, method) for name, methods in AT_MOST.items() for method in methods]


@pytest.mark.parametrize("name", AT_MOST)
def test_it_fires(name):
    assert_awake(name)


@pytest.mark.parametrize("name, method", CASES)
def test_three_steps_are_those_of_the_native_net_in_less_memory(name, method):
    assert_saves(name, method, *AT_MOST[name][method])


def _hooked(prepare=lambda net: None):
    found = FAMILIES["spike-driven transformer"]
    net, batches = found.make()
    prepare(net)
    _, hook = net(batches[0][0], hook={})
    return hook


@pytest.mark.parametrize("method", METHODS)
def test_the_spikes_handed_out_by_hook_are_the_same(method):
    how, options = METHODS[method]
    theirs, ours = _hooked(), _hooked(lambda net: sj_memext.retrofit(net, how, **options))
    assert ours.keys() == theirs.keys() and len(theirs) == 7
    for name, spikes in theirs.items():
        assert set(spikes.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(ours[name], spikes), name
