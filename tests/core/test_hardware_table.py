"""The table of layers: by hand, from files, and from networks of both frameworks."""
import dataclasses

import pytest
import torch
from torch import nn

from shared_core.errors import MemextError
from shared_core.hardware import LayerTable, layer_table, sata

CONV = dict(height=8, width=8, kernel=3, in_channels=3, out_channels=16, padding=1)


def rows():
    return [dict(CONV, name="conv", input_rate=0.25, real_input=True),
            dict(CONV, in_channels=16, stride=2, groups=4, kernel=(3, 5), padding=[1, 2], groups_sharing=2,
                 membrane="m", evaluations=4),
            dict(kind="transposed", height=4, width=4, kernel=3, in_channels=16, out_channels=8, stride=2, padding=1,
                 output_padding=1, neurons=0),
            dict(kind="pool", name="pool"), dict(in_features=512, out_features=10, weight_sparsity=0.5),
            dict(kind="conv", height=1, width=1, kernel=1, in_channels=1, out_channels=1),  # all at their defaults
            dict(in_features=1, out_features=1, stateless=True, neuron_runs=8)]


# ---- by hand --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    dict(kernel=3), dict(kernel=3, padding=1), dict(kernel=5, stride=2, padding=2), dict(kernel=(3, 1), stride=(1, 2)),
    dict(kernel=3, dilation=2, padding=2), dict(kernel=1, groups=4), dict(kernel=3, groups=8, stride=3, padding=1)],
    ids=str)
@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_shapes_are_those_of_torch(kind, options):
    """Output size, weights, and multiply-adds: those of a convolution of ones are the sum of its output, inside."""
    torch_options = {("kernel_size" if key == "kernel" else key): value for key, value in options.items()}
    cls = nn.Conv2d if kind == "conv" else nn.ConvTranspose2d
    module = cls(8, 16, bias=False, **torch_options)
    out = module(torch.ones(1, 8, 9, 7))
    (layer,) = LayerTable.from_rows([dict(kind=kind, height=9, width=7, in_channels=8, out_channels=16, **options)])
    assert layer.output == tuple(out.shape[2:]) and layer.outputs == out.numel()
    assert layer.weights == module.weight.numel()
    per_output = module.weight[0].numel()
    wanted = out.numel() * per_output if kind == "conv" else 8 * 9 * 7 * per_output
    assert layer.macs == wanted


def test_files_bring_back_the_same_table(tmp_path):
    table = LayerTable.from_rows(rows(), T=4, notes=["a note"])
    for suffix, kept in (("json", table), ("csv", dataclasses.replace(table, notes=()))):
        path = tmp_path / f"table.{suffix}"
        getattr(table, f"to_{suffix}")(path)
        assert getattr(LayerTable, f"from_{suffix}")(path) == kept
    assert LayerTable.from_rows(table.rows(), 4, table.notes) == table
    text = table.table()
    assert all(word in text for word in ("conv", "transposed", "pool", "m+C#2", "note: a note", "0.2500"))


@pytest.mark.parametrize("wrong, words", [
    (dict(CONV, kernal=3), "row 0 has 'kernal'; allowed: .*kernel"),
    (dict(height=8, width=8, in_channels=3, out_channels=4), "has no 'kernel'"),
    (dict(CONV, groups=2), "3 input and 16 output channels cannot be divided into 2 groups"),
    (dict(CONV, kernel=11, padding=0), "does not fit into 8x8"),
    (dict(CONV, stride=0), "stride is .*allowed: whole numbers from 1"),
    (dict(CONV, padding=-1), "padding is .*from 0"),
    (dict(CONV, input_rate=1.5), "input_rate is 1.5; allowed: from 0 to 1"),
    (dict(CONV, kernel=(3, 3, 3)), "kernel is .*a pair"),
    (dict(CONV, kind="lstm"), "kind 'lstm'; allowed: conv, transposed"),
    (dict(CONV, groups_sharing=3), "1024 neurons cannot be divided into groups_sharing=3"),
    (dict(in_features=4), "has no 'out_channels'"), ("a row", "row 0 is str")])
def test_rows_that_are_no_layers(wrong, words):
    with pytest.raises(MemextError, match=words):
        LayerTable.from_rows([wrong])


def test_tables_that_are_none(tmp_path):
    for call, words in ((lambda: LayerTable.from_rows([]), "at least one mapping"),
                        (lambda: LayerTable.from_rows([CONV], T=0), "T is 0"),
                        (lambda: LayerTable.from_rows([dict(CONV, name="a")] * 2), "two rows are called 'a'"),
                        (lambda: LayerTable.from_json(tmp_path / "none.json"), "cannot be read")):
        with pytest.raises(MemextError, match=words):
            call()
    path = tmp_path / "broken"
    for text, read, words in (("{", LayerTable.from_json, "is no JSON"), ('{"a": 1}', LayerTable.from_json, "no list"),
                              ("height,T\n8,4\n8,5\n", LayerTable.from_csv, "column T"),
                              ("height\n8,4\n", LayerTable.from_csv, "more cells"),
                              ("height\neight\n", LayerTable.from_csv, "height is 'eight'")):
        path.write_text(text)
        with pytest.raises(MemextError, match=words):
            read(path)


def test_sharing_by_hand():
    table = LayerTable.from_rows([dict(CONV, name="a"), dict(CONV, in_channels=16, name="b"),
                                  dict(in_features=1024, out_features=10, name="c")])
    assert sata(table, T=1, sparsity=0.5).membrane_bytes == 4 * (1024 + 1024 + 10)
    shared = table.with_sharing(channels=2, layers=[["a", "b"]])
    assert sata(shared, T=1, sparsity=0.5).membrane_bytes == 4 * (512 + 5)
    with pytest.raises(MemextError, match="there is no layer 'd'"):
        table.with_sharing(layers=[["a", "d"]])
    with pytest.raises(MemextError, match="only layers of equal activation size"):
        table.with_sharing(layers=[["a", "c"]])


# ---- SpikingJelly ---------------------------------------------------------------------------------------------------

def sj_net(step_mode="m", sharp=6.0):
    from spikingjelly.activation_based import functional, layer, neuron

    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(3, 16, 3, padding=1), layer.BatchNorm2d(16), neuron.LIFNode(),
                        layer.Conv2d(16, 16, 3, padding=1, groups=2), neuron.LIFNode(), layer.MaxPool2d(2),
                        layer.Conv2d(16, 32, (3, 1), stride=2, padding=(1, 0)), neuron.IFNode(), layer.Flatten(),
                        layer.Linear(32 * 4, 10))
    for m in net:
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.weight.data *= sharp
    net[9].weight.data[:, ::4] = 0
    functional.set_step_mode(net, step_mode)
    return net


def sample():
    return torch.rand(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_spikingjelly_network():
    net, x = sj_net().train(), sample()
    seen = {}
    for name in ("3", "6", "9"):
        net[int(name)].register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
    table = layer_table(net, x)
    by_name = {layer.name: layer for layer in table}
    assert table.T == 4 and [layer.kind for layer in table] == ["conv", "other", "conv", "pool", "conv", "linear"]
    for name, given in seen.items():  # the last call's: one call in step mode m
        rate = (given != 0).float().mean().item()
        assert 0.01 < rate < 0.9 and by_name[name].input_rate == pytest.approx(rate, abs=1e-6)  # float32 mean
        assert by_name[name].real_input is False
    assert by_name["0"].real_input is True and by_name["9"].weight_sparsity == 0.25
    assert [layer.spiking for layer in table] == [1024, 0, 1024, 0, 32 * 2 * 2, 0]
    assert by_name["3"].groups == 2 and by_name["6"].kernel == (3, 1) and by_name["6"].stride == (2, 2)
    assert all(layer.evaluations == 4 for layer in table if layer.counted)
    assert "normalisation" in by_name["1"].reason and net.training
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_states_stay_as_they_were():
    from spikingjelly.activation_based import functional

    net, x = sj_net("s"), sample()
    net(x[0])
    before = [m.v for m in net if hasattr(m, "v")]
    layer_table(net, x)
    assert all(a is b for a, b in zip(before, [m.v for m in net if hasattr(m, "v")]))
    functional.reset_net(net)


@pytest.mark.parametrize("method", ["neuron", "compress", "recompute", "s"])
def test_our_neurons_are_counted_as_the_framework_s(method):
    """The same spikes, so the same table, and the same energy to the last digit."""
    import sj_memext

    native = layer_table(sj_net(), sample())
    net = sj_net("s" if method == "s" else "m")
    if method != "s":
        sj_memext.retrofit(net, method)
    found = layer_table(net, sample())
    assert found == native and sata(found).to_dict() == sata(native).to_dict()
    assert sum(layer.input_rate for layer in found if layer.counted) > 1.2  # it fires


def test_shared_membranes_save_what_they_share():
    import sj_memext

    native = layer_table(sj_net(), sample())
    pairs = layer_table(sj_memext.share(sj_net().eval(), layers=[["2", "4"]], sample=sample()), sample())
    halves = layer_table(sj_memext.share(sj_net().eval(), channels=2, sample=sample()), sample())
    assert [layer.spiking for layer in native] == [layer.spiking for layer in pairs] == [x.spiking for x in halves]
    assert sata(native).membrane_bytes == 4 * (1024 + 1024 + 128)
    assert sata(pairs).membrane_bytes == 4 * (1024 + 128)
    assert sata(halves).membrane_bytes == 4 * (1024 + 1024 + 128) // 2
    assert (sata(native).lif_units, sata(pairs).lif_units, sata(halves).lif_units) == (128, 128, 64)
    assert sata(native).lif_updates == sata(halves).lif_updates


def test_reversible_neurons_are_neurons():
    """Their output is real-valued: the layer behind them multiplies, and is said to."""
    from spikingjelly.activation_based import layer, neuron

    import sj_memext

    net = nn.Sequential(layer.Conv2d(3, 8, 3, step_mode="m"), sj_memext.neuron.ReversibleLIFNode(step_mode="m"),
                        layer.Conv2d(8, 8, 3, step_mode="m"), neuron.IFNode(step_mode="m"))
    table = layer_table(net, sample())
    assert [layer.spiking for layer in table] == [8 * 36, 8 * 16] and table.layers[1].real_input
    assert any(note.startswith("2: ") for note in sata(table).notes)


def test_what_no_model_knows_is_named():
    """A product of two activations, a layer of another kind, a neuron behind an addition."""
    from spikingjelly.activation_based import layer, neuron

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer.Conv2d(3, 4, 3, step_mode="m")
            self.first, self.second = neuron.IFNode(step_mode="m"), neuron.IFNode(step_mode="m")
            self.gate = nn.Bilinear(6, 6, 6)

        def forward(self, x):
            x = self.first(self.conv(x))
            x = self.second(x + 1)
            x = self.gate(x, x)
            return x @ x.transpose(-1, -2)

    table = layer_table(Net(), sample())
    kinds = {layer.name: layer.kind for layer in table}
    assert kinds == {"conv": "conv", "second": "neuron", "gate": "other", "bmm in the model itself": "other"}
    found = sata(table)
    assert found.lif_updates == 2 * 4 * 144
    assert [name.split(":")[0] for name in found.not_counted] == ["gate (other)", "bmm in the model itself (other)"]
    left = sata(table, compat="sata-2024").not_counted
    assert any(line.startswith("second (neuron)") for line in left)


# ---- snnTorch -------------------------------------------------------------------------------------------------------

def snn_net(lif=None, **options):
    import snntorch as snn

    lif = lif or snn.Leaky

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.lif1 = nn.Conv1d(2, 8, 3, padding="same"), lif(beta=0.9, **options)
            self.pool = nn.AvgPool1d(2)
            self.up, self.lif2 = nn.ConvTranspose1d(8, 4, 2, stride=2), lif(beta=0.8, **options)
            self.fc, self.lif3 = nn.Linear(64, 10), snn.Leaky(beta=0.8)

        def forward(self, x):
            mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
            for _ in range(5):
                spk, mem1 = self.lif1(self.conv(x) * 3, mem1)
                spk, mem2 = self.lif2(self.up(self.pool(spk)), mem2)
                spk, mem3 = self.lif3(self.fc(spk.flatten(1)), mem3)
            return spk

    return Net()


def test_an_snntorch_network_that_loops_by_itself():
    import snntorch_memext

    x = torch.rand(3, 2, 16, generator=torch.Generator().manual_seed(1))
    table = layer_table(snn_net(), x)
    assert table.T == 5 and [layer.kind for layer in table] == ["conv", "pool", "transposed", "linear"]
    conv, _, up, fc = table
    assert (conv.height, conv.width, conv.kernel, conv.padding) == (1, 16, (1, 3), (0, 1))
    assert (up.output, up.macs) == ((1, 16), 8 * 8 * 4 * 2)
    assert [layer.spiking for layer in (conv, up, fc)] == [128, 64, 10]
    assert all(layer.evaluations == 5 for layer in (conv, up, fc)) and 0.01 < fc.input_rate < 0.9
    assert layer_table(snntorch_memext.retrofit(snn_net(), "neuron"), x) == table
    shared = layer_table(snn_net(snntorch_memext.neurons.SharedLeaky, groups=2), x)
    assert [layer.groups_sharing for layer in shared if layer.counted] == [2, 2, 1]
    assert sata(shared).lif_units == 128  # the last layer does not share, and sets the size of the array


def test_an_snntorch_network_that_is_stepped():
    import snntorch as snn

    net = nn.Sequential(nn.Conv2d(3, 4, 3), snn.Leaky(beta=0.9, init_hidden=True), nn.Flatten(), nn.Linear(144, 10),
                        snn.Leaky(beta=0.9, init_hidden=True, output=True))
    other = snn.Leaky(beta=0.9, init_hidden=True)
    other(torch.ones(2, 3))
    net(sample()[0])
    before, of_another = net[1].mem.clone(), other.mem.clone()
    table = layer_table(net, sample() * 4)
    assert table.T == 4 and [(layer.evaluations, layer.spiking) for layer in table] == [(4, 144), (4, 10)]
    assert torch.equal(net[1].mem, before) and torch.equal(other.mem, of_another)
    assert layer_table(net, sample() * 4, run=lambda net, x: [net(step) for step in x], T=4) == table
    assert layer_table(net, sample()[0], time="inside").T == 1


def test_networks_and_samples_that_cannot_be():
    import spikingjelly.activation_based.neuron  # noqa: F401  a framework must be there to ask

    for call, words in ((lambda: layer_table("net", sample()), "net is str"),
                        (lambda: layer_table(sj_net(), (4, 2, 3, 8, 8)), "sample is tuple"),
                        (lambda: layer_table(sj_net(), sample(), time="never"), "time is 'never'"),
                        (lambda: layer_table(nn.Linear(2, 2), sample()), "holds no spiking neuron"),
                        (lambda: layer_table(sj_net(), sample()[:, :, :2]), r"raised .* of shape \(4, 2, 2"),
                        (lambda: layer_table(sj_net("s"), sample()[0]), r"0 got \(3, 8, 8\), which has no batch"),
                        (lambda: layer_table(sj_net(), sample(), T=0), "T is 0")):
        with pytest.raises(MemextError, match=words):
            call()
