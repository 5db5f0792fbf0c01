"""What the tests of the frameworks' own tools share: one thread, and a list of snnTorch neurons of each test's own."""
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The sizes are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_instances(monkeypatch):
    """snnTorch lists every neuron of the process, and resets them all: each test sees its own only."""
    snntorch = pytest.importorskip("snntorch")
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])
