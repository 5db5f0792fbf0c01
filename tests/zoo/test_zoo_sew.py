"""SEW-ResNet in three generations of SpikingJelly's API, which are one network."""
import pytest
import torch
from zoo_check import SAME, assert_awake, assert_saves, distance, native, run
from zoo_families import FAMILIES

FLAVOURS = ("activation_based", "clock_driven", "cext")
AT_MOST = {  # as in test_zoo_spikformer.py; the same for all flavours
    "ADD": {"neuron": (0.91, 0.82), "substitute": (0.91, 0.82), "compress": (0.53, 0.56), "recompute": (0.02, 0.36),
            "recompute, memory": (0.02, 0.36)},
    "IAND": {"neuron": (0.92, 0.87), "substitute": (0.92, 0.87), "compress": (0.60, 0.63), "recompute": (0.11, 0.36),
             "recompute, memory": (0.11, 0.36)},
}
NAMES = [f"SEW-ResNet {connect}, {flavour}" for connect in AT_MOST for flavour in FLAVOURS]


@pytest.mark.parametrize("name", NAMES)
def test_it_fires(name):
    assert_awake(name)


@pytest.mark.parametrize("method", AT_MOST["ADD"])
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_are_those_of_the_native_net_in_less_memory(name, method):
    assert_saves(name, method, *AT_MOST[name.split()[1].rstrip(",")][method])


@pytest.mark.parametrize("connect", AT_MOST)
@pytest.mark.parametrize("flavour", FLAVOURS[1:])
def test_the_flavours_are_one_network(flavour, connect):
    """Also that the old default surrogate, ATan, is not the new one, Sigmoid: the gradients would not agree."""
    wanted = native(f"SEW-ResNet {connect}, {FLAVOURS[0]}")
    ours = run(FAMILIES[f"SEW-ResNet {connect}, {flavour}"], follow=wanted)
    assert len(ours.keys) == len(wanted.keys)
    for i in range(3):
        assert torch.allclose(ours.losses[i], wanted.losses[i], rtol=SAME, atol=0)
        assert distance(ours.gradients[i], wanted.gradients[i]) <= SAME
