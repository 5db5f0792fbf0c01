"""The hardware view of SpikingJelly networks: the zoo, our models and neurons, and the framework's own counters.

Oracles that know nothing of the layer table: torch's FLOP counter, the numbers that neurons put out, lif_memory, the
closed form beside T-RevSNN, and SpikingJelly's SpikeSim counter.
"""
import re

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import SpikeSimEnergyConfig, estimate_spikesim_energy
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training_steps import neurons
from zoo import ZOO, assert_awake, wake

import sj_memext
from shared_core.errors import MemextError
from shared_core.hardware import LayerTable
from shared_core.lif_memory import lif_memory
from sj_memext import model
from sj_memext.hardware import estimate, layer_table, sata, spikesim
from sj_memext.layer import ReversibleBlock, ReversibleSequence
from sj_memext.model.t_revsnn_energy import energy as t_revsnn_energy

QUICK = ("spiking_vgg11_bn", "spikformer", "max_resnet")
METHODS = ("neuron", "compress", "recompute")


def zoo(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names if name in QUICK
            or not name.startswith("full")]


def awake(name: str) -> tuple[nn.Module, Tensor]:
    """A net of the zoo in evaluation mode, with this input's statistics in its norms."""
    net, x = ZOO[name].make()
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = 1.0
    run(net, x)
    return wake(net.eval(), x, ZOO[name].rate), x


def updates(net: nn.Module, x: Tensor) -> int:
    """What all neurons put out, spikes or not, for the whole batch."""
    found = []
    handles = [m.register_forward_hook(lambda m, args, out: found.append(out.numel())) for m in neurons(net)]
    run(net, x)
    for handle in handles:
        handle.remove()
    return sum(found)


def run(net: nn.Module, x: Tensor) -> None:
    functional.reset_net(net)
    with torch.no_grad():
        net(x)
    functional.reset_net(net)


def named_macs(table: LayerTable) -> int:
    """Multiply-adds of what is only named."""
    return sum(int(found[1]) for row in table if (found := re.search(r"(\d+) multiply-adds", row.reason)))


# ---- every operation is counted or named ----------------------------------------------------------------------------

@pytest.mark.parametrize("name", zoo(ZOO))
def test_all_multiply_adds_and_neurons_of_the_zoo(name):
    """torch's own FLOP counter sees the same multiply-adds: in the rows, or named with their number (attention)."""
    net, x = awake(name)
    assert_awake(net, x)
    with FlopCounterMode(display=False) as flops:
        run(net, x)
    table = layer_table(net, x)
    batch = x.shape[1] if x.dim() == 5 else x.shape[0]  # images are shown T times by some nets themselves
    counted = sum(row.macs * row.runs(table.T, table.T) for row in table if row.counted)
    assert 2 * batch * (counted + named_macs(table)) == flops.get_total_flops()
    assert batch * sum(row.spiking * row.updates(table.T, table.T) for row in table) == updates(net, x)
    assert table.T == (x.shape[0] if x.dim() == 5 else 3)
    if name.startswith(("spikformer", "qkformer", "maxformer")):  # the other one multiplies element by element
        assert any(row.name.startswith("bmm in ") for row in table) and named_macs(table) > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", zoo(ZOO))
def test_retrofitted_nets_cost_what_the_native_ones_do(name, method):
    """The same spikes, so the same table, which is all that the models see."""
    net, x = awake(name)
    assert_awake(net, x)
    native = layer_table(net, x)
    found = layer_table(sj_memext.retrofit(net, method), x)
    assert found == native
    assert {type(m) for m in neurons(net)} != {type(m) for m in neurons(sj_memext.restore(net))}


def test_the_reversible_neuron_s_nets_differ_in_their_rates_only():
    """RevSNN's neuron passes on real values: another network, with layers and neurons of the same sizes."""
    net, x = awake("spiking_vgg11")
    native = layer_table(net, x)
    sj_memext.retrofit(net, "reversible")
    found = layer_table(net, x)
    same = [[{k: v for k, v in row.items() if k not in ("input_rate", "real_input")} for row in t.rows()]
            for t in (native, found)]
    assert same[0] == same[1] and found != native
    assert sum(note.startswith(("features", "classifier")) for note in sata(found).notes) == 10  # it says so
    assert spikesim(found).total_nj == spikesim(native).total_nj


def test_pooling_and_means_are_named_with_their_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.node = layer.Conv2d(3, 4, 3, padding=1, step_mode="m"), neuron.IFNode(step_mode="m")
            self.pool, self.largest = layer.AvgPool2d(2, step_mode="m"), layer.MaxPool2d(3, 1, step_mode="m")
            self.wide = layer.AdaptiveAvgPool2d(1, step_mode="m")

        def forward(self, x):
            x = self.largest(self.pool(self.node(self.conv(x))))
            x = torch.nn.functional.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
            sums = torch.nn.functional.adaptive_avg_pool2d(x.flatten(0, 1), 2).sum()
            return self.wide(x).mean(0) + sums

    rows = {row.name: (row.kind, row.reason) for row in layer_table(Net(), torch.rand(5, 2, 3, 12, 12))}
    assert rows["pool"] == ("pool", f"{5 * 4 * 36 * 4} additions for a sample")
    assert rows["largest"] == ("pool", f"{5 * 4 * 16 * 9} comparisons for a sample")
    assert rows["wide"] == ("pool", f"{5 * 4 * 4} additions for a sample")
    assert rows["avg_pool2d in the model itself"] == ("pool", "1 pooling outside of convolutions and linear layers")
    assert "_adaptive_avg_pool2d in the model itself" in rows
    assert "mean in the model itself" in rows and not any(name.startswith("mean in wide") for name in rows)


def test_products_inside_of_neurons_are_named():
    """A parallel spiking neuron multiplies the sequence by a T x T matrix."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(3, 4, 3, padding=1, step_mode="m"), neuron.PSN(T=4)).eval()
    x = torch.rand(4, 2, 3, 8, 8)
    with FlopCounterMode(display=False) as flops:
        run(net, x)
    table = layer_table(net, x)
    assert [row.name for row in table] == ["0", "addmm in 1"] and table.layers[0].spiking == 256
    assert named_macs(table) == 4 * 4 * 256
    assert 2 * 2 * (4 * table.layers[0].macs + named_macs(table)) == flops.get_total_flops()


def test_layers_and_neurons_that_run_more_or_less_often_than_once_a_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.lif1 = layer.Conv2d(3, 4, 3, padding=1), neuron.LIFNode()
            self.conv2, self.lif2 = layer.Conv2d(4, 4, 3, padding=1), neuron.LIFNode()  # used twice a step
            self.fc, self.lif3 = layer.Linear(256, 10), neuron.LIFNode()
            self.last, self.lif4 = layer.Linear(10, 5), neuron.LIFNode()  # of the last step only

        def forward(self, x):
            x = self.lif1(self.conv1(x))
            for _ in range(2):
                x = self.lif2(self.conv2(x))
            x = self.lif3(self.fc(x.flatten(2)))
            return self.lif4(self.last(x[-1:]))

    net, x = Net(), torch.rand(4, 2, 3, 8, 8)
    functional.set_step_mode(net, "m")
    table = layer_table(net, x)
    assert table.T == 4
    assert [(row.runs(4, 4), row.updates(4, 4), row.spiking) for row in table] == [
        (4, 4, 256), (8, 8, 256), (4, 4, 10), (1, 1, 5)]
    assert [(row.runs(8, 4), row.updates(8, 4)) for row in table] == [(8, 8), (16, 16), (8, 8), (1, 1)]
    assert 2 * sata(table).lif_updates == updates(net, x)
    assert sata(table).membrane_bytes == 4 * (256 + 256 + 10 + 5)


# ---- our models -----------------------------------------------------------------------------------------------------

MODELS = {"vgg16": (model.vgg16, dict(widths=(8, 8, 16, 16, 16)), (3, 2, 3, 16, 16)),
          "resnet19": (model.resnet19, dict(widths=(8, 8, 16, 16)), (3, 2, 3, 16, 16)),
          "har_net": (model.har_net, dict(width=8), (3, 2, 6, 16))}


def built(name, **options):
    torch.manual_seed(0)
    make, sizes, shape = MODELS[name]
    net = make(**sizes, **options)
    for m in net.modules():
        if isinstance(m, nn.Conv1d | nn.Conv2d):
            m.weight.data *= 3  # so that it fires
    return net.eval(), torch.rand(shape)


@pytest.mark.parametrize("name, sharing", [
    pytest.param(name, sharing, marks=() if name == "har_net" or sharing == "L+C#2" else pytest.mark.slow)
    for name in MODELS for sharing in ("L", "C#2", "L+C#2", "C#4")])
def test_shared_membranes_save_what_they_share(name, sharing):
    """At equal spike rates a net with shared membranes costs what the native one does, less what sharing saves, which
    is known in closed form; membranes are those of lif_memory, an accounting of its own."""
    native, x = built(name)
    shared, _ = built(name, sharing=sharing)
    alone, found = layer_table(native, x), layer_table(shared, x)
    assert sata(found).membrane_bytes == lif_memory(shared, x).forward_bytes < sata(alone).membrane_bytes
    assert sum(row.input_rate for row in found if row.counted) > 1.5
    channels = int(sharing.partition("#")[2] or 1)
    lists = {}
    for row in found:
        lists.setdefault(row.membrane, []).append(row.name)
    lists.pop("")  # of those that share with nobody
    assert ("L" in sharing) == bool(lists)
    by_hand = alone.with_sharing(channels=channels, layers=list(lists.values()))
    for T in (None, 2):
        a, b = (sata(table, T=T, sparsity=0.8).to_dict() for table in (found, by_hand))
        assert a == b
        a, b = (spikesim(table, T=T).to_dict() for table in (found, by_hand))
        assert a == b and a["lif_area_um2"] < a["lif_area_alone_um2"]
    few, all_units = sata(found, sparsity=0.8), sata(alone, sparsity=0.8)
    assert few.lif_units == 128 // channels and few.lif_updates == all_units.lif_updates
    assert (few.macs, few.dram_nj) == (all_units.macs, all_units.dram_nj)  # membranes stay in the array


@pytest.mark.parametrize("name", MODELS)
def test_step_modes_are_the_same_network(name):
    (multi, x), (single, _) = built(name), built(name, step_mode="s")
    assert layer_table(multi, x) == layer_table(single, x)


REVERSIBLE = {"resnet": (lambda **o: model.rev_spiking_resnet21(planes=(4, 8, 8, 8), T=3, **o), 0),
              "spikformer": (lambda **o: model.rev_spikformer(T=3, width=16, depth=1, heads=2, **o), 2)}


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("shown", ["sequence", "images"])
def test_reversible_models_cost_what_plain_ones_do(name, shown):
    build, products = REVERSIBLE[name]
    x = torch.rand(3, 2, 3, 16, 16)
    x = x[0] if shown == "images" else x
    nets = []
    for reversible in (True, False):
        torch.manual_seed(0)
        nets.append(build(reversible=reversible).eval())
    tables = [layer_table(net, x) for net in nets]
    assert tables[0] == tables[1] and tables[0].T == 3
    with FlopCounterMode(display=False) as flops:
        run(nets[1], x)
    counted = sum(row.macs * row.runs(3, 3) for row in tables[0] if row.counted)
    assert 2 * 2 * (counted + named_macs(tables[0])) == flops.get_total_flops()
    assert 2 * sum(row.spiking * row.updates(3, 3) for row in tables[0]) == updates(nets[0], x)
    assert (named_macs(tables[0]) > 0) == bool(products)
    first = tables[0].layers[0]
    assert first.runs(3, 3) == (1 if shown == "images" and name == "resnet" else first.runs(3, 3))


def test_reversible_blocks_of_the_user():
    def branch():
        return nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), neuron.LIFNode())

    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(3, 8, 3, padding=1), neuron.LIFNode(),
                        ReversibleSequence([ReversibleBlock(branch(), branch()) for _ in range(2)]))
    functional.set_step_mode(net, "m")
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data *= 4
    x = torch.rand(4, 2, 3, 8, 8)
    table = layer_table(net.eval(), x)
    assert [row.spiking for row in table] == [8 * 64, *[4 * 64] * 4]
    assert 2 * 4 * sum(row.spiking for row in table) == updates(net, x)
    assert sata(table).lif_updates == 4 * 1536 and sata(table).membrane_bytes == 4 * 1536


@pytest.mark.parametrize("variant, shape", [("cifar", (2, 3, 16, 16)), ("events", (4, 2, 2, 32, 32))])
def test_t_revsnn(variant, shape):
    """Its neurons are in no framework: those without a membrane, and those between stages, which have one each for all
    columns. Beside it stands the paper's closed form, written apart."""
    torch.manual_seed(0)
    net = model.t_revsnn((8, 8, 16, 16), 10, T=4, variant=variant).eval()
    x = torch.rand(shape).round() if variant == "events" else torch.rand(shape)
    table = layer_table(net, x)
    for rate in (0.1, 0.3):
        wanted = t_revsnn_energy(net, x, rate=rate).mj
        assert estimate(table, sparsity=1 - rate).eq13_nj * 1e-6 == pytest.approx(wanted, rel=1e-9)
    states = net.columns(net.encode(x))
    membranes = sum(v[0].numel() for v in states)
    turned_off = []
    handles = [m.register_forward_hook(lambda m, args, out: turned_off.append(out[0].numel())) for m in net.modules()
               if type(m).__name__ == "TurnedOff"]
    net(x)
    for handle in handles:
        handle.remove()
    found = sata(table)
    assert found.membrane_bytes == 4 * membranes and table.T == 4
    assert found.lif_updates == sum(turned_off) + 4 * membranes
    assert spikesim(table).lif_area_um2 == pytest.approx(membranes * 22 * 0.7391)
    assert LayerTable.from_rows(table.rows(), table.T) == table
    again = sata(table, T=4, sparsity=0.9, dataflow="output-stationary")
    assert again.accesses.dram_membranes == 2 * 4 * membranes


def test_columns_of_the_user():
    """Stages without neurons of their own: those between them are all there are."""
    from shared_core.reversible.columns import Columns

    class Stage(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, 4, 3, padding=1)

        def forward(self, below, above):
            return self.conv(below)

    net = Columns([[Stage(3), Stage(4)] for _ in range(3)], (4, 4))
    table = layer_table(net, torch.rand(3, 2, 3, 8, 8))
    assert table.T == 3 and [row.runs(3, 3) for row in table if row.counted] == [1] * 6
    assert sata(table).lif_updates == 3 * 2 * 4 * 64 and sata(table).membrane_bytes == 4 * 2 * 4 * 64


# ---- the run leaves no trace ----------------------------------------------------------------------------------------

def test_states_of_everything_that_remembers_stay():
    """Neurons, and other modules with a memory: a synapse filter, a recurrent container."""
    net = nn.Sequential(layer.Conv2d(3, 4, 3), neuron.LIFNode(), layer.SynapseFilter(tau=3.0), layer.Flatten(),
                        layer.LinearRecurrentContainer(neuron.IFNode(), 144, 144), layer.Linear(144, 10))
    x = torch.rand(4, 2, 3, 8, 8)
    net(x[0])
    before = {name: dict(m._memories) for name, m in net.named_modules() if hasattr(m, "_memories")}
    random = torch.get_rng_state()
    table = layer_table(net.train(), x)
    after = {name: dict(m._memories) for name, m in net.named_modules() if hasattr(m, "_memories")}
    assert before.keys() == after.keys() and len(before) >= 4
    assert all(before[name][key] is after[name][key] for name in before for key in before[name])
    assert net.training and torch.equal(random, torch.get_rng_state())
    assert {"0", "4.rc", "5"} == {row.name for row in table if row.counted}


@pytest.mark.parametrize("wrap", [nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)])
def test_compiled_and_wrapped_nets(wrap):
    net, x = built("har_net")
    assert layer_table(wrap(net), x) == layer_table(net, x)


@pytest.mark.parametrize("tokens", [2, 3])
def test_plain_linear_layers_on_sequences_and_on_tokens(tokens):
    """torch.nn.Linear does not mind further dimensions: [T, N, F] is a sequence, [T, N, tokens, F] tokens in one,
    whatever the sizes are (T equal to N, or a multiple of it)."""
    for T, N in ((4, 2), (2, 2), (3, 2)):
        net = nn.Sequential(nn.Linear(6, 8), neuron.IFNode(step_mode="m"), nn.Linear(8, 3))
        flat = layer_table(net, torch.rand(T, N, 6))
        assert [(row.runs(T, T), row.height, row.macs) for row in flat] == [(T, 1, 48), (T, 1, 24)]
        wide = layer_table(net, torch.rand(T, N, tokens, 6))
        assert [(row.runs(T, T), row.height, row.macs) for row in wide] == [(T, tokens, 48 * tokens),
                                                                            (T, tokens, 24 * tokens)]


# ---- SpikingJelly's own SpikeSim counter ----------------------------------------------------------------------------

def mixed():
    """Convolutions of several kernels, strides and widths; a linear layer, which the counter does not know."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(3, 70, 3, padding=1), neuron.LIFNode(tau=1.5),
                        layer.Conv2d(70, 96, (5, 1), stride=2), neuron.IFNode(), layer.Conv2d(96, 16, 1),
                        neuron.IFNode(), layer.Flatten(), layer.Linear(16 * 2 * 4, 10))
    for m in net:
        if isinstance(m, nn.Conv2d):
            m.weight.data *= 4
    functional.set_step_mode(net, "m")
    return net.eval(), torch.rand(4, 2, 3, 8, 8)


def counter(net, x, **config):
    functional.reset_net(net)
    with torch.no_grad():
        report = estimate_spikesim_energy(net, x, config=SpikeSimEnergyConfig(**config))
    functional.reset_net(net)
    return {stage.partition(".")[2]: pj * 1e-3 / x.shape[1] for stage, pj in report.energy_by_stage.items()}


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("activity", ["dense", "event"])
def test_energy_is_the_framework_s_counter_s(size, activity):
    """The closed form on a table is the counter on a run network, layer by layer; what it lacks is added."""
    net, x = mixed()
    wanted = counter(net, x, xbar_size=size, activity_mode=activity)
    found = spikesim(net, x, activity=activity, xbar_size=size)
    assert set(wanted) == {"0", "2", "4"}
    for row in found.layers:
        if row.name in wanted:
            assert row.total_nj == pytest.approx(wanted[row.name], rel=1e-12)
    assert found.layers[-1].total_nj > 0 and found.latency_ns > 0 and found.area_um2 > 0
    table = layer_table(net, x)
    dense = spikesim(table, xbar_size=size)
    if activity == "dense":
        assert found == dense
    else:
        assert found.layers[0].total_nj == pytest.approx(dense.layers[0].total_nj)  # real input: no spikes to look at
        assert all(a.total_nj < b.total_nj for a, b in zip(found.layers[1:3], dense.layers[1:3]))
        assert (found.latency_ns, found.area_um2) == (dense.latency_ns, dense.area_um2)


def test_the_counter_s_demo_network():
    """Two convolutions of 16 and 32 channels on 8x8 maps, T = 4: the published script's number, from all three."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(3, 16, 3, padding=1, bias=False), neuron.IFNode(),
                        layer.Conv2d(16, 32, 3, padding=1, bias=False), neuron.IFNode(), layer.Flatten(),
                        layer.Linear(2048, 10, bias=False))
    functional.set_step_mode(net, "m")
    x = (torch.rand(4, 1, 3, 8, 8) < 0.1).float()
    net.eval()
    published = spikesim(layer_table(net, x), compat="spikesim")
    assert f"{published.total_nj * 1e3:.7f}" == "424184.9073664"
    assert f"{sum(counter(net, x).values()) * 1e3:.7f}" == "424184.9073664"
    assert published.not_counted == ("5 (linear): the published tool knows no linear layers",)


def test_the_counter_sees_our_neurons_as_the_framework_s():
    """In strict mode it refuses every class but IFNode and LIFNode."""
    net, x = mixed()
    wanted = spikesim(net, x, activity="event")
    for method in METHODS:
        again, _ = mixed()
        sj_memext.retrofit(again, method)
        assert spikesim(again, x, activity="event") == wanted
    found = spikesim(net, x, activity="event", device="sram", crossbar_pj=300.0)  # for SRAM the user's own number
    config = dict(device="sram", activity_mode="event", sram_xbar_pj=300.0)
    assert found.layers[1].total_nj == pytest.approx(counter(net, x, **config)["2"], rel=1e-12)


@pytest.mark.parametrize("args, options, words", [
    (("table", None), dict(activity="event"), "a table holds no spikes"),
    (("table", "x"), {}, "a table holds no spikes"), (("net", None), {}, "got Sequential and NoneType"),
    (("net", "x"), dict(activity="sparse"), "activity is 'sparse'; allowed: 'dense', 'event'"),
    (("net", "x"), dict(T=8), "T is decided by the run"),
    (("net", "x"), dict(activity="event", compat="spikesim"), "does not look at spikes"), ((3, "x"), {}, "got int")])
def test_calls_that_cannot_be(args, options, words):
    net, x = mixed()
    names = {"net": net, "x": x, "table": LayerTable.from_rows([dict(in_features=4, out_features=4)], T=2)}
    with pytest.raises(MemextError, match=words):
        spikesim(*(names.get(arg, arg) for arg in args), **options)
