"""What every test of snnTorch shares: a list of neurons of its own."""
import pytest
import snntorch


@pytest.fixture(autouse=True)
def own_instances(monkeypatch):
    """The framework lists every neuron of the process, and resets them all: each test sees its own only."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])
