"""The benchmarks of stepping through time run, unattended, in tiny sizes, and judge their figures as they say."""
import argparse
import json

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from benchmarks import _unroll_accuracy as runs
from benchmarks import accuracy_unroll, readme, unroll_cpu
from benchmarks._training import distance
from benchmarks._unroll_cases import (
    AT_ONCE,
    CHUNKS,
    DIVIDED,
    EXACT,
    METHODS,
    NEURON,
    PLAIN,
    REVERSE,
    SLTT,
    Case,
    Training,
)
from shared_core.temporal import unroll


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go to a folder of the test's own. One thread: the sizes are tiny."""
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_unroll_cpu(elsewhere, monkeypatch):
    unroll_cpu.main(["--quick", "--threads", "1"])
    data = json.loads((elsewhere / "unroll_cpu.json").read_text())
    assert [(r["network"], r["method"]) for r in data["rows"]] == [
        (network, m) for network, methods in unroll_cpu.RIVALS.items() for m in methods]
    assert not [row for row in data["rows"] + data["growth"] if "failed" in row]
    rows = {(r["network"], r["method"]): r for r in data["rows"]}
    for (network, method), row in rows.items():
        assert row["step, ms"] > 0 and row["time of plain's"] > 0 and row["peak of torch checkpoint's"] > 0
        if method in EXACT:
            # The bound; measured: 0 to 1e-7, division 1e-7.
            assert row["gradients unlike plain's"] < 1e-5, row
        if method in (REVERSE, CHUNKS, SLTT):
            assert row["peak, MiB"] < rows[network, PLAIN]["peak, MiB"]
    assert rows["conv_leaky", SLTT]["gradients unlike plain's"] > 1e-2  # another gradient
    assert {v["method"] for v in data["asked"]} == {*EXACT, *AT_ONCE, SLTT} - {NEURON}
    assert all(v["measured"] is not None for v in data["asked"])
    assert (elsewhere / "unroll_cpu.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(readme, "RESULTS", elsewhere)
    shown = readme.unroll_cpu().splitlines()
    assert len(shown) == 2 + len(data["rows"]) and len({line.count("|") for line in shown}) == 1


def test_torch_checkpoint_is_a_fair_rival():
    """Its second run neither starts from the state that the first one left nor moves the statistics of batch norm."""
    for network in unroll_cpu.RIVALS:
        found = {}
        for method in (PLAIN, CHUNKS):
            training = Training(Case(network, method, 5, 2))
            with torch.no_grad():  # the neurons fire: else there is no state to be lost
                for p in training.net.parameters():
                    p.mul_(3.0)
            steps = []
            for _ in range(2):
                training.step()
                steps += training.gradients()
            found[method] = steps, dict(training.net.named_buffers())
        assert distance(found[CHUNKS][0], found[PLAIN][0]) < 1e-6  # sums in another order
        for name in found[PLAIN][1]:
            if "running" in name or "tracked" in name:
                assert torch.equal(found[CHUNKS][1][name], found[PLAIN][1][name]), name


def test_neurons_are_counted():
    assert Training(Case("conv_leaky", PLAIN, 2, 3)).neurons() == 3 * (16 * 14**2 + 32 * 7**2 + 10)
    assert Training(Case("conv_leaky", CHUNKS, 2, 3)).neurons() == 3 * (16 * 14**2 + 32 * 7**2 + 10)
    assert Training(Case("conv_lif", REVERSE, 2, 3)).neurons() == 3 * (16 * 32**2 + 32 * 16**2)


def test_division_is_measured_on_the_cpu():
    """Tensors without memory, on "meta", must not be taken for the device that is measured."""
    found, gradients = unroll_cpu.tensors(Case("conv_leaky", DIVIDED, 9, 2, 1))
    assert found["peak, MiB"] * unroll_cpu.MIB > 2 * 4 * 2 * 16 * 28**2  # the first layer's output and its gradient
    assert found["kept, B"] > 1 / 8 and len(gradients) == 6  # a bit at least


def test_every_method_is_there_and_unknown_ones_are_named():
    with pytest.raises(ValueError, match="method 'magic'; allowed: plain, "):
        Training(Case("conv_leaky", "magic", 2, 2))
    assert {REVERSE, DIVIDED, *AT_ONCE} < set(METHODS)


def test_asked_beside_measured():
    row = {"network": "conv_leaky", "T": 400, "method": REVERSE, "peak of plain's": 0.021, "time of plain's": 1.25}
    growth = [{"network": "conv_leaky", "T": t, "method": method, figure: value} for t, method, figure, value in (
        (100, REVERSE, "kept, B", 0.5), (400, REVERSE, "kept, B", 0.41),
        (100, SLTT, "peak, MiB", 3.0), (400, SLTT, "peak, MiB", 3.09))]
    found = [(v["T"], v["figure"], v["asked"], v["met"]) for v in unroll_cpu.verdicts([row], growth)]
    assert found == [
        (400, "peak of plain's", "at most 0.02", False), (400, "time of plain's", "at most 1.25", True),
        (400, "gradients unlike plain's", "at most 1e-05", None),
        # 1/8 and a float32 state for each of C chunks, C(C+1)/2 >= T: 14 of 100 steps, 28 of 400
        (100, "kept, B per neuron and step", "at most 0.685", True),
        (400, "kept, B per neuron and step", "at most 0.405", False),
        ("100-400", "highest peak over lowest", "at most 1.02", False)]


def test_out_of_time_and_failures_are_rows(monkeypatch):
    args = argparse.Namespace(threads=1, rounds=1, quick=True)
    late = unroll_cpu.Clock(-1)
    rows = unroll_cpu.compared("conv_leaky", 2, 2, args, late)
    growth = unroll_cpu.growing((2,), 2, args, late)
    assert {row["failed"] for row in rows + growth} == {unroll_cpu.LATE}
    assert all(v["met"] is None for v in unroll_cpu.verdicts(rows, growth))
    monkeypatch.setitem(unroll_cpu.RIVALS, "conv_leaky", (PLAIN, "magic"))
    plain, magic = unroll_cpu.compared("conv_leaky", 2, 2, args, unroll_cpu.Clock(60))
    assert plain["step, ms"] > 0 and magic["failed"].startswith("method 'magic'")


def test_accuracy_unroll(elsewhere, monkeypatch):
    methods = []
    monkeypatch.setattr(runs, "unroll", lambda net, x, method: methods.append(method) or unroll(net, x, method))
    accuracy_unroll.main(["--quick", "--threads", "1"])
    assert methods == ["reverse"] * 2  # batches
    data = json.loads((elsewhere / "accuracy_unroll.json").read_text())
    rows = {row["method"]: row for row in data["rows"]}
    assert tuple(rows) == runs.METHODS and not [row for row in rows.values() if "failed" in row]
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 1 and len(row["firing"]) == 2 and min(row["firing"]) > 0.01
    losses = {m: rows[m]["first loss"] for m in runs.METHODS if m != runs.SLTTK}
    assert max(losses.values()) - min(losses.values()) < 1e-5  # the same weights and batch, but for one ulp
    # Two steps of Adam: rounding apart, and another gradient.
    assert rows[runs.BPTT]["weights unlike BPTT's"] == [0]
    assert rows[runs.REVERSE]["weights unlike BPTT's"][0] < 1e-3 < rows[runs.SLTT]["weights unlike BPTT's"][0]
    assert 0 < rows[runs.PERTURBED]["weights unlike BPTT's"][0]
    monkeypatch.setattr(readme, "RESULTS", elsewhere)
    shown = readme.accuracy_unroll().splitlines()
    assert len(shown) == 2 + len(runs.METHODS) and len({line.count("|") for line in shown}) == 1


def test_perturbed_by_one_ulp():
    net, other = runs.build(3), runs.build(3)
    runs.perturb(other, 3)
    for p, q in zip(net.parameters(), other.parameters()):
        assert (p != q).all() and ((q == torch.nextafter(p, q.new_tensor(torch.inf)))
                                   | (q == torch.nextafter(p, q.new_tensor(-torch.inf)))).all()


def test_the_band():
    def row(method, seed, accuracy, apart):
        return {"method": method, "seed": seed, "accuracy": accuracy, "weights unlike BPTT's": [apart], "seconds": 1.0}

    rows = [row(runs.BPTT, 0, 0.70, 0.0), row(runs.BPTT, 1, 0.72, 0.0), row(runs.PERTURBED, 0, 0.71, 0.2),
            row(runs.PERTURBED, 1, 0.69, 0.1), row(runs.REVERSE, 0, 0.70, 0.1), row(runs.REVERSE, 1, 0.71, 0.3),
            row(runs.SLTT, 0, 0.695, 1.0), row(runs.SLTT, 1, 0.71, 1.0), row(runs.SLTTK, 0, 0.65, 1.0)]
    found = [(v["method"], v["figure"], v["met"]) for v in accuracy_unroll.verdicts(rows)]
    assert found == [(runs.REVERSE, "mean accuracy", True), (runs.REVERSE, "weights apart from BPTT's", False),
                     (runs.SLTT, "accuracy to BPTT's", True), (runs.SLTTK, "accuracy to BPTT's", False)]
