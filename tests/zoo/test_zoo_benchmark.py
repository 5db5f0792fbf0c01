"""benchmarks.zoo_cpu runs, writes what a figure needs beside it, and its rows become the README's table."""
import json

import pytest
import torch

from benchmarks import zoo_cpu
from benchmarks._readme_zoo import zoo_rows


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_quick_run(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    zoo_cpu.main(["--quick", "--threads", "1"])
    data = json.loads((tmp_path / "zoo_cpu.json").read_text())
    assert data["quick"] and data["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    rows = {(row["family"], row["method"]): row for row in data["rows"]}
    assert {family for family, _ in rows} == set(zoo_cpu.QUICK) and not any("failed" in row for row in data["rows"])
    for row in data["rows"]:
        assert row["losses apart"] <= 1e-5 and row["gradients apart"] <= 1e-5 and row["keys the same"]
        assert row["step, ms"]["median"] > 0
    assert rows["SEW-ResNet ADD, cext", "recompute balanced"]["peak of native's"] < 0.4
    assert rows["MS-ResNet, mem_update", "checkpoint blocks"]["peak of native's"] < 0.6

    header, table = zoo_rows(tmp_path / "zoo_cpu.json")
    assert all(len(line) == len(header) for line in table)
    sew, ms = table
    assert sew[0] == "SEW-ResNet ADD, cext" and sew[1] == "2 MiB" and sew[-2] == "-"
    assert ms[2] == "-" and float(ms[-2].rstrip("x")) < 0.6


def test_every_family_has_its_methods():
    for name in zoo_cpu.FAMILIES:
        methods = zoo_cpu.methods_of(name)
        assert ("neuron" in methods) == (name not in zoo_cpu.WITHOUT_NODES)
        assert ("checkpoint blocks" in methods) == (name in zoo_cpu.BLOCKS)
