"""lif_memory of built snnTorch networks: the states that their neurons hold after a step."""
import pytest
import snntorch as snn
import torch
from torch import nn

from shared_core.errors import MemextError
from shared_core.memory import lif_memory
from snntorch_memext.shared import SharedLeaky


def test_every_neuron_once_and_both_states_of_synaptic():
    net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(8, 4),
                        snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True))
    found = lif_memory(net, (3, 6))
    assert found.forward_bytes == 4 * (8 + 4 + 4) and found.backward_bytes == 5 * found.forward_bytes
    assert lif_memory(net, torch.rand(7, 6), time_steps=20).backward_bytes == 20 * found.forward_bytes
    x = torch.rand(3, 6)
    net(x)
    states = [net[1].mem, net[3].syn, net[3].mem]
    assert sum(s.numel() * s.element_size() for s in states) == 3 * found.forward_bytes


def test_one_object_called_twice_is_one_membrane():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.lif = SharedLeaky(groups=2, beta=0.9, init_hidden=True)

        def forward(self, x):
            return self.lif(self.b(self.lif(self.a(x))))

    found = lif_memory(Net(), (3, 8))
    (membrane,) = found.membranes
    assert (membrane.layers, membrane.channels, membrane.shape) == (("lif", "lif"), 2, (8,))
    assert found.forward_bytes == found.backward_bytes == 4 * 4


def test_a_net_without_neurons():
    with pytest.raises(MemextError, match="holds no spiking neuron"):
        lif_memory(nn.Linear(6, 4), (3, 6))
