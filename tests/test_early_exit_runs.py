"""Early exit from the command line, in its example and in its benchmark (tiny sizes), and what reports hold."""
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional

from shared_core import cli
from shared_core.errors import MemextError
from shared_core.hardware import LayerTable, costs, early_exit, exit_costs, layer_table

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NET = '''
import torch
from spikingjelly.activation_based import functional, layer, neuron

def build(mode="m"):
    torch.manual_seed(0)
    net = torch.nn.Sequential(layer.Conv2d(2, 8, 3), neuron.LIFNode(), layer.MaxPool2d(2), layer.Flatten(),
                              layer.Linear(72, 10))
    net[0].weight.data *= 9
    net[4].weight.data *= 12
    functional.set_step_mode(net, mode)
    return net

def images():
    generator = torch.Generator().manual_seed(1)
    light = torch.rand(1, 13, 1, 1, 1, generator=generator)
    return torch.rand(4, 13, 2, 8, 8, generator=generator) * light
'''


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "exit_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("exit_net", None)


def run(*args):
    return cli.main(["energy", *args])


# ---- reports --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_report_by_hand(mode):
    """The tables are those of the samples that stop at each step, over the steps they take; costs are their mean."""
    import exit_net

    net, x = exit_net.build(mode), exit_net.images()
    labels = torch.arange(13) % 10
    stopped = early_exit(net, 0.7)
    result = stopped(x)
    assert len(result.steps.unique()) > 2
    report = stopped.report([(x[:, :6], labels[:6]), (x[:, 6:], labels[6:])])
    assert report.exits == result.exits and report.mean_steps == result.mean_steps and report.samples == 13
    assert report.accuracy == result.accuracy(labels)
    functional.reset_net(net)
    with torch.no_grad():
        out = net.eval()(x) if mode == "m" else torch.stack([net.eval()(step) for step in x])
    functional.reset_net(net)
    assert report.full_accuracy == (out.mean(0).argmax(1) == labels).double().mean().item()
    assert report.full.table == layer_table(net, x)
    for t in result.steps.unique().tolist():
        assert report.tables[t] == layer_table(net, x[:t, result.steps == t])
    assert len({table.layers[-1].input_rate for table in report.tables.values()}) > 2  # their rates do differ
    by_hand = {t: costs(table, T=t) for t, table in report.tables.items()}
    for name, cost in report.energy.items():
        wanted = sum((result.steps == t).double().mean().item() * run.total_nj(name) for t, run in by_hand.items())
        assert cost.energy_nj == pytest.approx(wanted) == report.expected.total_nj(name)
        assert cost.full_nj == costs(layer_table(net, x)).total_nj(name) > cost.energy_nj
    text = report.text()
    assert all(word in text for word in ("SATA", "SpikeSim", "product of the means", f"{report.mean_steps:.3f} of 4"))


def test_a_report_of_some_samples():
    import exit_net

    net, x = exit_net.build(), exit_net.images()
    stopped = early_exit(net, 0.7)
    few = stopped.report([x[:, :6], x[:, 6:]], samples=1, lif_units=32)  # no labels
    assert few.accuracy is None and few.full_accuracy is None and "accuracy" not in few.text()
    steps = stopped(x).steps
    for t, table in few.tables.items():
        first = int((steps == t).nonzero()[0])
        assert table == layer_table(net, x[:t, first:first + 1])
    assert few.full.table == layer_table(net, x[:, :1]) and few.full.sata.lif_units == 32
    for call, words in ((lambda: stopped.report([]), "loader is empty"),
                        (lambda: stopped.report([x], samples=0), "samples is 0"),
                        (lambda: early_exit(net).report([x]), "there is no threshold yet"),
                        (lambda: stopped(x[0, 0, 0, 0]), "x is Tensor of shape"),
                        (lambda: stopped([x]), "x is list; allowed")):
        with pytest.raises(MemextError, match=words):
            call()


# ---- the command ----------------------------------------------------------------------------------------------------

def test_compared_on_the_command_line(here, capsys):
    import exit_net

    assert run("exit_net:build", "--sample", "exit_net:images", "--table", "net.json", "--json", "one.json", "--png",
               "one.png", "--compare", "same", "threshold=0.7") == 0
    assert "exit_net:build threshold=0.7" in capsys.readouterr().out
    stopped = early_exit(exit_net.build(), 0.7)
    report = stopped.report([exit_net.images()])
    found = json.loads(Path("one.json").read_text())["runs"]["exit_net:build threshold=0.7"]
    assert found["models"]["sata"]["total_nj"] == pytest.approx(report.expected.total_nj("sata"))
    assert found["T"] == pytest.approx(report.mean_steps)
    report.to_json("report.json")
    shares = ",".join(map(str, report.exits))
    for setting, wanted in (("exits=report.json", report.expected),
                            (f"exits={shares}", exit_costs(LayerTable.from_json("net.json"), report.exits))):
        assert run("net.json", "--json", "two.json", "--compare", "same", setting) == 0
        runs = json.loads(Path("two.json").read_text())["runs"]
        for model in wanted.parts:
            assert runs[f"net.json {setting}"]["models"][model]["total_nj"] == pytest.approx(wanted.total_nj(model))
    capsys.readouterr()
    for settings, words in ((["threshold=0.3"], "early exit needs a model and its sample"),
                            (["exits=0.5,0.1"], "adding up to 1"), (["exits=a"], "0.6,0.2,0.1,0.1"),
                            (["exits=net.json"], "no report of early exit"), (["exits=none.json"], "no report"),
                            (["exits=1", "threshold=1"], "either says who stops when")):
        assert run("net.json", "--compare", "same", *settings) == 2
        assert words in capsys.readouterr().err


# ---- example and benchmark ------------------------------------------------------------------------------------------

def test_example(here, capsys):
    import early_exit as example  # of examples/

    torch.manual_seed(0)
    report = example.main(["--quick", "--out", str(here / "new" / "folder")])
    printed = capsys.readouterr().out
    assert "calibrated on 1000 digits" in printed and "SATA" in printed
    values = json.loads((here / "new" / "folder" / "early_exit.json").read_text())
    assert values["exits"] == list(report.exits) and set(values["tables"]) == {
        str(t) for t, share in enumerate(report.exits, 1) if share}
    assert (here / "new" / "folder" / "early_exit.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_benchmark(here):
    """A folder of MNIST's four files, of noise: what is measured is not the point."""
    raw = here / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, n in (("train", 300), ("t10k", 100)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 2051, n, 28, 28) + generator.integers(0, 256, n * 784, np.uint8).tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 2049, n) + generator.integers(0, 10, n, np.uint8).tobytes())
    from benchmarks import early_exit as benchmark

    options = ["--data", str(here), "--quick", "--steps", "2"]
    benchmark.main([*options, "--losses", "every"])
    first = json.loads((here / "early_exit.json").read_text())
    benchmark.main([*options, "--resume"])
    found = json.loads((here / "early_exit.json").read_text())
    assert [row["loss"] for row in found["rows"]] == ["every", "last"] and found["rows"][0] == first["rows"][0]
    for row in found["rows"]:
        assert row["steps saved"] == pytest.approx(1 - row["mean steps"] / 2)
        assert row["lost"] == pytest.approx(row["accuracy, all steps"] - row["accuracy"])
        assert sum(row["exits"]) == pytest.approx(1) and set(row["energy"]) >= {"table2", "eq13", "sata", "spikesim"}
        assert all(0 <= rate <= 1 for rate in row["spike rates"].values())
    assert {v["figure"] for v in found["asked"]} == {"steps saved", "lost"} and len(found["asked"]) == 4
    with pytest.raises(SystemExit, match="another drop"):
        benchmark.main([*options, "--resume", "--drop", "0.5"])
