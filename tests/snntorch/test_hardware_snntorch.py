"""The hardware view of snnTorch networks: nested, recurrent, with states by hand, and with our neurons.

Oracles that know nothing of the layer table: torch's FLOP counter, and the numbers that neurons put out.
"""
import re

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import snntorch_memext
from snntorch_memext.hardware import LayerTable, costs, estimate, layer_table, sata, spikesim
from snntorch_memext.layers import ReversibleBlock, ReversibleSequence

T, N = 4, 2


class Block(nn.Module):
    def __init__(self, inputs, outputs, lif=snn.Leaky, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.lif = lif(beta=0.9, threshold=0.5, init_hidden=True, **options)

    def forward(self, x):
        return self.lif(self.conv(x) * 3)


def nested(lif=snn.Leaky, **options):
    """Neurons inside of modules inside of modules; stepped from outside."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(Block(3, 4, lif, **options), nn.AvgPool2d(2)),
                         nn.ModuleDict({"deep": nn.Sequential(Block(4, 8, lif, **options))})["deep"], nn.Flatten(),
                         nn.Linear(128, 10), snn.Leaky(beta=0.9, init_hidden=True, output=True))


def images():
    return torch.rand(T, N, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    """Loops over time by itself, states by hand: every neuron's spikes come back through weights of its own."""

    def __init__(self, first: dict):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.RLeaky(beta=0.9, **first)
        self.fc2, self.lif2 = nn.Linear(20, 5), snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=5)

    def forward(self, x):
        spk1, mem1 = self.lif1.init_rleaky()
        spk2, syn2, mem2 = self.lif2.init_rsynaptic()
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step) * 5, spk1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1) * 5, spk2, syn2, mem2)
        return spk2


def flops(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def multiply_adds(table: LayerTable) -> int:
    """Counted, or named with their number."""
    named = sum(int(found[1]) for row in table if (found := re.search(r"(\d+) multiply-adds", row.reason)))
    return named + sum(row.macs * row.runs(table.T, table.T) for row in table if row.counted)


def test_nested_modules():
    net, x = nested().eval(), images()
    table = layer_table(net, x)
    assert [(row.name, row.kind, row.spiking) for row in table] == [
        ("0.0.conv", "conv", 256), ("0.1", "pool", 0), ("1.0.conv", "conv", 128), ("3", "linear", 10)]
    assert all(0.02 < row.input_rate for row in table if row.counted) and table.T == T
    assert 2 * N * multiply_adds(table) == flops(lambda: [net(step) for step in x])
    assert table.layers[1].reason == f"{T * 256} additions for a sample"
    assert table == layer_table(net, x, run=lambda net, x: [net(step) for step in x], T=T)


@pytest.mark.parametrize("first", [dict(linear_features=20), dict(all_to_all=False, V=0.5)], ids=["all", "one to one"])
def test_recurrent_weights_are_layers(first):
    """Their inputs are the neuron's own spikes; the neuron stands behind the layer before it, not behind them."""
    net, x = Recurrent(first).eval(), torch.rand(T, N, 12, generator=torch.Generator().manual_seed(1))
    seen = []
    net.lif1.recurrent.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    table = layer_table(net, x)
    rows = {row.name: row for row in table}
    assert [rows[name].spiking for name in ("fc1", "fc2", "lif2.recurrent")] == [20, 5, 0] and table.T == T
    assert 2 * N * multiply_adds(table) == flops(lambda: net(x))
    if "linear_features" in first:
        rate = torch.stack(seen[:T]).count_nonzero().item() / (T * N * 20)
        assert rows["lif1.recurrent"].input_rate == rate > 0.02 and rows["lif1.recurrent"].macs == 400
    else:
        assert rows["lif1.recurrent"].kind == "other"
        assert "RecurrentOneToOne" in rows["lif1.recurrent"].reason
        assert any(line.startswith("lif1.recurrent (other)") for line in sata(table).not_counted)


def test_whole_sequences():
    """LeakyParallel takes [T, N, F] at once; its own weights are products of another kind, and are named."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(12, 20), snn.LeakyParallel(20, 10)

        def forward(self, x):
            return self.lif(self.fc(x))

    net, calls = Net(), []
    net.register_forward_pre_hook(lambda m, args: calls.append(args[0].shape))
    table = layer_table(net, torch.rand(5, N, 12))
    assert calls == [(5, N, 12)]
    assert table.T == 5 and table.layers[0].runs(5, 5) == 5 and table.layers[0].spiking == 10
    assert table.layers[1].name == "lif.rnn" and table.layers[1].kind == "other"


def test_a_membrane_handed_on_by_hand_is_shared():
    """EfficientLIF-Net's layers that share, written out: the second neuron starts from the first one's membrane."""
    class Net(nn.Module):
        def __init__(self, shared):
            super().__init__()
            torch.manual_seed(0)
            self.shared = shared
            self.conv1, self.lif1 = nn.Conv2d(3, 4, 3, padding=1), snn.Leaky(beta=0.9)
            self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), snn.Leaky(beta=0.9)
            self.fc, self.out = nn.Linear(256, 10), snn.Leaky(beta=0.5)

        def forward(self, x):
            mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.out.init_leaky()
            for step in x:
                spk, mem1 = self.lif1(self.conv1(step) * 3, mem1)
                if self.shared:
                    spk, mem1 = self.lif2(self.conv2(spk) * 3, mem1)
                else:
                    spk, mem2 = self.lif2(self.conv2(spk) * 3, mem=mem2)
                spk, mem3 = self.out(self.fc(spk.flatten(1)), mem3)
            return spk

    alone, shared = (layer_table(Net(shared), images()) for shared in (False, True))
    assert [row.membrane for row in alone] == ["", "", ""]
    assert [row.membrane for row in shared] == ["shared0", "shared0", ""]
    assert sata(alone).membrane_bytes == 4 * (256 + 256 + 10) and sata(shared).membrane_bytes == 4 * (256 + 10)
    by_hand = alone.with_sharing(layers=[["conv1", "conv2"]])
    assert sata(shared, sparsity=0.9).to_dict() == sata(by_hand, sparsity=0.9).to_dict()
    assert spikesim(shared).lif_area_um2 == pytest.approx(266 / 522 * spikesim(alone).lif_area_um2)


def test_our_neurons_are_counted_as_the_framework_s():
    """The same spikes, so the same table, and the same energy by every model."""
    native = layer_table(nested(), images())
    fused = layer_table(snntorch_memext.retrofit(nested(), "neuron"), images())
    assert fused == native and costs(fused).to_dict() == costs(native).to_dict()
    assert estimate(native).eq13_nj > 0


def test_shared_membranes_save_what_they_share():
    native = layer_table(nested(), images())
    channels = layer_table(nested(snntorch_memext.neurons.SharedLeaky, groups=2), images())
    assert [row.groups_sharing for row in channels] == [2, 1, 2, 1]
    assert sata(channels).membrane_bytes == 4 * (128 + 64 + 10)
    by_hand = LayerTable.from_rows([{**row, "groups_sharing": 2 if row["kind"] == "conv" else 1}
                                    for row in native.rows()], native.T)
    for model in (lambda t: sata(t, sparsity=0.9), spikesim):
        assert model(channels).to_dict() == model(by_hand).to_dict()
    assert spikesim(channels).total_nj == spikesim(native).total_nj
    assert sata(channels, sparsity=0.9).dram_nj == sata(native, sparsity=0.9).dram_nj


@pytest.mark.parametrize("channels", [1, 2])
def test_share_on_a_built_network(channels):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(Block(3, 4), Block(4, 4), nn.Flatten(), nn.Linear(256, 10),
                             snn.Leaky(beta=0.9, init_hidden=True))

    native = layer_table(net(), images())
    shared = snntorch_memext.share(net(), layers=[["0.lif", "1.lif"]], channels=channels, sample=images()[0])
    found = layer_table(shared, images())
    by_hand = native.with_sharing(channels=channels, layers=[["0.conv", "1.conv"]])
    assert sata(found, sparsity=0.9).to_dict() == sata(by_hand, sparsity=0.9).to_dict()
    assert spikesim(found).to_dict() == spikesim(by_hand).to_dict()
    assert sata(found).membrane_bytes == 4 * (256 + 10) // channels


def test_reversible_blocks_and_neurons():
    def branch():
        return Block(4, 4)

    torch.manual_seed(0)
    net = nn.Sequential(Block(3, 8), ReversibleSequence([ReversibleBlock(branch(), branch()) for _ in range(2)])).eval()
    table = layer_table(net, images())
    assert [row.spiking for row in table] == [8 * 64, *[4 * 64] * 4] and table.T == T
    assert 2 * N * multiply_adds(table) == flops(lambda: [net(step) for step in images()])
    reversible = layer_table(nested(snntorch_memext.neurons.ReversibleLeaky), images())
    native = layer_table(nested(), images())
    assert [row.spiking for row in reversible] == [row.spiking for row in native]
    assert sata(reversible).membrane_bytes == sata(native).membrane_bytes
    assert reversible.layers[2].real_input and any(note.startswith("1.0.conv: ") for note in sata(reversible).notes)


def test_states_stay_and_other_networks_are_left_alone():
    net, other = nested(), nested()
    net(images()[0])
    other(images()[0])
    before = {name: b.clone() for n in (net, other) for name, b in n.named_buffers() if name.endswith("mem")}
    held = [net[0][0].lif.mem, other[0][0].lif.mem]
    layer_table(net, images())
    assert held[0] is net[0][0].lif.mem and held[1] is other[0][0].lif.mem
    assert before and all(torch.equal(b, before[name]) for name, b in other.named_buffers() if name in before)
