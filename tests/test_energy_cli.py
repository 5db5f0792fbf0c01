"""`memext energy`: models and tables, one run or two, as text, JSON, CSV and PNG."""
import json
import sys

import pytest

from shared_core import cli
from shared_core.hardware import LayerTable, costs, layer_table, sata

NET = '''
import torch
from spikingjelly.activation_based import layer, neuron

def build():
    torch.manual_seed(0)
    net = torch.nn.Sequential(layer.Conv2d(2, 8, 3, step_mode="m"), neuron.LIFNode(step_mode="m"),
                              layer.MaxPool2d(2, step_mode="m"), layer.Flatten(step_mode="m"),
                              layer.Linear(72, 10, step_mode="m"))
    net[0].weight.data *= 5
    return net

def images():
    return torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))

def crash():
    raise ValueError("no data")
'''
TABLE = "name,height,width,kernel,in_channels,out_channels,padding,in_features,out_features,T\n" \
        "a,8,8,3,3,16,1,,,4\nb,8,8,3x3,16,32,1,,,4\nc,,,,,,,512,10,4\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "energy_net.py").write_text(NET)
    (tmp_path / "tiny.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("energy_net", None)


def run(*args):
    return cli.main(["energy", *args])


def test_a_model_on_real_input(here, capsys):
    assert run("energy_net:build", "--sample", "energy_net:images", "--json", "out.json", "--table", "net.csv",
               "--png", "out.png", "--layers") == 0
    out = capsys.readouterr().out
    for word in ("estimated, Table II", "estimated, Eq. 13", "SATA", "SpikeSim", "DRAM", "on-chip buffers", "LIF units",
                 "leakage of on-chip buffers", "converters of crossbars", "H-trees", "total", "LIF module: ",
                 "wrote out.json", "wrote out.png", "not counted by sata: 2 (pool)", "input rate", "PE-cycles"):
        assert word in out, word
    import energy_net

    table = layer_table(energy_net.build(), energy_net.images())
    assert LayerTable.from_csv("net.csv") == table and 0.05 < table.layers[-1].input_rate < 0.95
    values = json.loads((here / "out.json").read_text())
    found = costs(table)
    assert values["sata"]["total_nj"] == found.sata.total_nj
    assert values["models"]["sata"]["total_nj"] == pytest.approx(found.sata.total_nj, rel=1e-12)
    assert values["models"]["table2"]["total_nj"] == found.estimate.table2_nj
    assert values["models"]["eq13"]["total_nj"] == found.estimate.eq13_nj
    assert values["spikesim"]["total_nj"] == found.spikesim.total_nj
    for model in values["models"].values():  # components add up to what the model says
        assert sum(model["parts_nj"].values()) == pytest.approx(model["total_nj"], rel=1e-12)
    assert values["models"]["spikesim"]["total_nj"] == pytest.approx(found.spikesim.total_nj, rel=1e-12)
    assert values["models"]["sata"]["parts_nj"]["leakage"] == found.sata.sram_leakage_nj
    assert (here / "out.png").read_bytes().startswith(b"\x89PNG")
    assert run("net.csv", "--json") == 0  # the table stands for the model
    assert json.loads(capsys.readouterr().out)["sata"] == values["sata"]


def test_a_table_as_the_published_tool_counts(here, capsys):
    assert run("tiny.csv", "--sparsity", "0.9", "--compat", "sata-2023", "--json") == 0
    values = json.loads(capsys.readouterr().out)["sata"]
    assert f"{values['total_nj']:.5f}" == "10494.17091" and values["compat"] == "sata-2023"
    assert run("tiny.csv", "--sparsity", "0.9", "--time-steps", "1", "--compat", "sata-2024", "--json") == 0
    assert f"{json.loads(capsys.readouterr().out)['sata']['dram_nj']:.5f}" == "4965.71306"


def test_spikesim_as_the_published_tool_counts(here, capsys):
    """Two convolutions of 16 and 32 channels: the number that its script prints; SATA beside it stays corrected."""
    assert run("tiny.csv", "--sparsity", "0.9", "--compat", "spikesim", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert f"{values['spikesim']['total_nj'] * 1e3:.7f}" == "424184.9073664"
    assert values["spikesim"]["latency_ns"] is None and values["sata"]["compat"] is None
    assert run("tiny.csv", "--sparsity", "0.9", "--compat", "sata-2023,spikesim", "--layers") == 0
    out = capsys.readouterr().out
    assert "no latency, 0.6664 mm2, spikesim" in out and "tick-batch, sata-2023" in out
    assert "not counted by spikesim: c (linear)" in out and "note by spikesim: no latency: the published tool" in out
    assert run("tiny.csv", "--sparsity", "0.9", "--xbar-size", "32", "--compare", "same", "compat=spikesim",
               "xbar_size=64") == 0
    out = capsys.readouterr().out
    assert "tiny.csv compat=spikesim xbar_size=64" in out and "SpikeSim, latency ns" in out
    assert "SpikeSim, area um2" in out and "SpikeSim, LIF module um2" in out


def test_two_runs(here, capsys):
    """No sharing against C#4, four time steps against two."""
    assert run("tiny.csv", "--sparsity", "0.9", "--compare", "same", "lif_units=32", "T=2", "--json", "both.json",
               "--png", "both.png") == 0
    out = capsys.readouterr().out
    assert "tiny.csv lif_units=32 T=2" in out and "0.500x" in out and "SATA, area um2" in out
    one, two = json.loads((here / "both.json").read_text())["runs"].values()
    table = LayerTable.from_csv("tiny.csv")
    assert one["sata"]["total_nj"] == sata(table, sparsity=0.9).total_nj
    assert two["sata"]["total_nj"] == sata(table, T=2, sparsity=0.9, lif_units=32).total_nj
    assert (here / "both.png").read_bytes().startswith(b"\x89PNG")
    assert run("tiny.csv", "--sparsity", "0.9", "--compare", "energy_net:build", "--input", "4,3,2,8,8") == 0
    assert "energy_net:build" in capsys.readouterr().out


def test_arrays_and_dataflows(here, capsys):
    assert run("tiny.csv", "--sparsity", "0.9", "--array", "32x4", "--dataflow", "output-stationary", "--json") == 0
    values = json.loads(capsys.readouterr().out)["sata"]
    assert values["dataflow"] == "output-stationary" and values["lif_units"] == 128


@pytest.mark.parametrize("args, words", [
    (["tiny.csv"], "pass --sparsity 0.9"), (["none.csv", "--sparsity", "0.9"], "none.csv cannot be read"),
    (["energy_net:build"], "pass either --sample"), (["energy_net:build", "--sample", "energy_net:crash"], "no data"),
    (["energy_net:build", "--sample", "energy_net:images", "--input", "4,2,2,8,8"], "pass either --sample"),
    (["tiny.txt"], "pass either --sample"), (["tiny.csv", "--sparsity", "many"], "sparsity is 'many'"),
    (["tiny.csv", "--sparsity", "0.9", "--array", "16"], "array is '16'; allowed: ROWSxCOLUMNS"),
    (["tiny.csv", "--sparsity", "0.9", "--array", "0x8"], "rows is 0"),
    (["tiny.csv", "--sparsity", "0.9", "--dataflow", "wave"], "dataflow is 'wave'; allowed: tick-batch"),
    (["tiny.csv", "--sparsity", "0.9", "--compat", "sata"], "compat is 'sata'; allowed: sata-2023"),
    (["tiny.csv", "--sparsity", "0.9", "--compat", "sata-2023,sata-2024"], "compat has both 'sata-2023' and"),
    (["tiny.csv", "--sparsity", "0.9", "--device", "pcm"], "device is 'pcm'; allowed: rram, sram"),
    (["tiny.csv", "--sparsity", "0.9", "--device", "sram"], "no energy is known for SRAM crossbars"),
    (["tiny.csv", "--sparsity", "0.9", "--xbar-size", "60"], "xbar_size is 60"),
    (["tiny.csv", "--sparsity", "0.9", "--lif-units", "x"], "lif_units is 'x'"),
    (["tiny.csv", "--sparsity", "0.9", "--compare", "same", "units"], "'units' is no setting"),
    (["tiny.csv", "--sparsity", "0.9", "--compare", "same", "units=3"], "'units' is no setting; allowed: T, lif_units"),
    (["tiny.csv", "--sparsity", "0.9", "--png", "nowhere/x.png"], "there is no folder"),
    (["tiny.csv", "--sparsity", "0.9", "--table", "x.txt"], "ends in .csv or .json")])
def test_what_cannot_be(here, capsys, args, words):
    assert run(*args) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("memext energy: ") and error.count("\n") == 1
