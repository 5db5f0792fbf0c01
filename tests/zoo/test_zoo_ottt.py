"""OTTT's VGG. Its memory does not grow with time as it is; what it keeps for one step can still shrink."""
import pytest
from zoo_check import SUBSTITUTE, assert_awake, assert_same, assert_saves, native, retrofitted
from zoo_families import FAMILIES

import sj_memext
from shared_core.checkpoint import checkpoint_modules
from shared_core.errors import MemextError

NODES, OWN = "OTTT VGG, activation_based", "OTTT VGG, its own neurons"
AT_MOST = {NODES: {"compress": (0.84, 0.96), "recompute": (0.84, 0.96)},  # as in test_zoo_spikformer.py
           OWN: {"compress": (0.64, 0.93), "recompute": (0.64, 0.93)}}
CASES = [(name, method) for name, methods in AT_MOST.items() for method in methods]


@pytest.mark.parametrize("name", AT_MOST)
def test_it_fires(name):
    assert_awake(name)


@pytest.mark.parametrize("name, method", CASES)
def test_three_steps_are_those_of_the_native_net_in_less_memory(name, method):
    assert_saves(name, method, *AT_MOST[name][method])


def test_substitute_leaves_its_nodes_alone():
    ours, theirs = retrofitted(NODES, SUBSTITUTE), native(NODES)
    assert_same(ours, theirs)
    assert ours.saved == theirs.saved
    assert [type(m) for m in ours.net.modules()] == [type(m) for m in theirs.net.modules()]


def test_retrofit_says_why_it_leaves_a_node_that_hands_on_a_trace():
    net, _ = FAMILIES[NODES].make()
    with pytest.raises(MemextError, match=r"features\.1 \(OTTTLIFNode\): it overrides .*computes something else"):
        sj_memext.retrofit(net, "neuron")


def test_running_its_own_neurons_again_is_refused_by_name():
    """They keep their membrane on the object: a second run would go on from where the first one ended."""
    found = FAMILIES[OWN]
    net, batches = found.make()
    checkpoint_modules(net, ["lifs.*"])
    with pytest.raises(MemextError, match=r"OnlineLIFNode\) changes its 'v' .*restore_modules"):
        found.step(net, *batches[0])
