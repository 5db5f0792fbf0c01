"""The benchmarks run, unattended, and write what their README promises: tiny sizes, on the CPU, into another folder.

Figures of such sizes mean nothing and are not looked at; that rivals computed the same thing is.
"""
import json
import os
import sys
import time

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from benchmarks import (
    _gpu,
    cpu,
    gpu,
    memory_cpu,
    memory_gpu,
    neurons_cpu,
    neurons_gpu,
    readme,
    saved_bytes,
    training_step_cpu,
    training_step_gpu,
)
from benchmarks._asked import BOUNDS, Bound, verdicts
from benchmarks._measure import HERE
from benchmarks._networks import SEW_RESNET18, SPIKFORMER, VGG11, floor
from benchmarks._networks import TINY as NETWORKS
from benchmarks._resident import HighWater, returning_blocks
from benchmarks._training import (
    CHECKPOINT,
    MEMOPT,
    MEMOPT_STEM,
    NATIVE,
    OURS,
    Training,
    distance,
    first_step,
    ours,
    rivals,
)
from benchmarks._worker import Case, Worker
from shared_core.backends import cuda, native

TINY = ["--device", "cpu", "--tiny", "--seconds", "200"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go to a folder of the test's own; the committed ones stay as they are. One thread: the sizes are tiny."""
    committed = HERE / "results"
    before = {p: p.read_bytes() for p in committed.glob("*")}
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    assert {p: p.read_bytes() for p in committed.glob("*")} == before


def results(folder, name):
    data = json.loads((folder / f"{name}.json").read_text())
    assert data["machine"].keys() >= {"cpu", "cores", "python", "versions", "commit"}
    assert {"torch", "spikingjelly", "snntorch"} <= data["machine"]["versions"].keys()
    return data


needs_kernels = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def test_neurons_cpu(elsewhere):
    neurons_cpu.main(["--quick", "--tiny"])
    data = results(elsewhere, "neurons_cpu")
    assert {row["surrogate"] for row in data["rows"]} == {"Sigmoid", "ATan", "default (atan)"}
    for row in data["rows"]:
        assert row["framework, ns"] > 0 and row["ours, ns"] > 0 and row["times faster"] > 0
        assert len(row["ours, p20-p80"]) == 2 and row["over the limit"] > 0


def test_saved_bytes(elsewhere):
    saved_bytes.main(["--tiny"])
    rows = results(elsewhere, "saved_bytes")["rows"]
    assert {row["layer"] for row in rows} == {"SpikingJelly IFNode", "SpikingJelly LIFNode",
                                              "SpikingJelly ParametricLIFNode", "snnTorch Leaky"}
    for row in rows:
        own = 4 if row["dtype"] == "float32" else 2
        # x, [2, 16, 64] at its own dtype; ParametricLIF and Leaky also keep parameters, of one value or three.
        assert own <= row["ours, B"] < own + 0.02
        # snnTorch's default Leaky keeps 4 B, whatever the input's dtype: as much as ours in float32.
        assert row["framework, B"] > own + 0.02 or (row["layer"] == "snnTorch Leaky" and row["framework, B"] >= 4)


@needs_kernels
def test_neurons_gpu(elsewhere):
    assert neurons_gpu.main(TINY) == 0
    data = results(elsewhere, "neurons_gpu")
    assert len(data["rows"]) == 3 * 5 * 4 * 2
    for row in data["rows"] + data["surrogates"] + data["exactness"] + data["overhead"]:
        assert "failed" not in row and "framework failed" not in row, row
    for row in data["rows"]:
        assert row["ours, ms"] > 0 and row["framework, ms"] > 0 and row["of the copy's GB/s"] > 0
        assert row["framework runs"] and len(row["ours, p20-p80"]) == 2
    assert [row["surrogate"] for row in data["surrogates"][:2]] in (["ATan", "Sigmoid"], ["Sigmoid", "ATan"])
    for row in data["exactness"]:
        assert 0.05 < row["firing rate"] < 0.6
        assert row["flips vs CPU kernels, per 1e9"] == 0 and row["gradient vs CPU kernels"] == 0  # the same kernels
        if row["dtype"] == "float32":
            assert row["flips vs framework, per 1e9"] == row["flips vs eager Torch, per 1e9"] == 0
            assert row["gradient vs framework"] < 1e-6  # other order of a few float32 operations per step
    assert {row["pass"] for row in data["overhead"]} == {"forward", "forward + backward"}
    assert all("ours, eager, us" in row and "ours, graph failed" in row for row in data["overhead"])
    assert all({"what", "framework", "ours", "unit", "times better"} <= row.keys() for row in data["summary"])


@needs_kernels
def test_training_step_gpu(elsewhere):
    assert training_step_gpu.main(TINY) == 0
    rows = results(elsewhere, "training_step_gpu")["rows"]
    found = [(r["network"], r["precision"], r["method"]) for r in rows]
    wanted = {(n.name, p, m) for n in NETWORKS for p in ("float32", "autocast bfloat16") for m in rivals(n)}
    wanted |= {(n.name, "float32", m) for n in NETWORKS for m in MEMOPT[1:]}
    assert set(found) == wanted and len(found) == len(wanted)
    for row in rows:
        if row["method"] in MEMOPT[1:]:
            assert "require CUDA" in row["failed"]  # reported, not hidden
            continue
        assert "failed" not in row, row
        assert row["step, ms"] > 0 and row["peak, MiB"] > 0 and row["peak of native's"] > 0
        assert row["of the floor"] == (row["peak, MiB"] + row["parameters, MiB"]) / row["floor, MiB"]
        if row["precision"] == "float32":
            assert row["gradients unlike native's"] < 1e-5 and row["loss unlike native's"] < 1e-6


@needs_kernels
def test_memory_gpu(elsewhere):
    assert memory_gpu.main(TINY) == 0
    data = results(elsewhere, "memory_gpu")
    assert {row["against"] for row in data["rows"]} == {"T", "depth"}
    assert not [row for row in data["rows"] if "failed" in row]
    peaks = {(r["against"], r["depth"], r["T"], r["precision"], r["method"]): r["peak, MiB"] for r in data["rows"]}
    assert peaks["T", 2, 4, "float32", "native"] > peaks["T", 2, 4, "float32", "neuron"]
    assert peaks["T", 2, 4, "float32", "native"] > peaks["T", 2, 2, "float32", "native"]
    for row in data["layers"]:
        assert row["ours, MiB"] < row["framework, MiB"], row


@needs_kernels
def test_training_step_cpu(elsewhere, monkeypatch):
    training_step_cpu.main(["--quick"])
    data = results(elsewhere, "training_step_cpu")
    assert [(r["network"], r["method"]) for r in data["rows"]] == [(n.name, m) for n in NETWORKS for m in rivals(n)]
    assert not [row for row in data["rows"] if "failed" in row]
    kept = {(r["network"], r["method"]): r["kept, B"] for r in data["rows"]}
    for row in data["rows"]:
        assert row["step, ms"] > 0 and len(row["step, p20-p80"]) == 2 and row["time of native's"] > 0
        # Rivals computed the same: float32 and another order of a few operations. In this process peaks mean nothing.
        assert row["gradients unlike native's"] < 1e-5, row
        if row["method"] != NATIVE:
            assert kept[row["network"], row["method"]] < kept[row["network"], NATIVE]
    assert [row["gradients unlike native's"] for row in data["rows"] if row["method"] == NATIVE] == [0] * len(NETWORKS)
    monkeypatch.setattr(readme, "RESULTS", elsewhere)
    shown = readme.training_step_cpu().splitlines()
    assert len(shown) == 2 + len(data["rows"]) and len({line.count("|") for line in shown}) == 1


@needs_kernels
def test_memory_cpu(elsewhere, monkeypatch):
    memory_cpu.main(["--quick"])
    data = results(elsewhere, "memory_cpu")
    assert [(r["against"], r["value"], r["method"]) for r in data["rows"]] == [
        (against, value, m) for against, points in memory_cpu.QUICK.items() for value, _ in points
        for m in memory_cpu.METHODS]
    assert not [row for row in data["rows"] if "failed" in row]
    tensors = {(r["against"], r["value"], r["method"]): r["peak of tensors, MiB"] for r in data["rows"]}
    for method in memory_cpu.METHODS:
        assert tensors["T", 4, method] > tensors["T", 2, method]
        assert tensors["batch", 4, method] > tensors["batch", 2, method]
    assert [row["method"] for row in data["slopes"]] == list(memory_cpu.METHODS)
    assert (elsewhere / "memory_cpu.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(readme, "RESULTS", elsewhere)
    shown = readme.memory_cpu().splitlines()
    assert len(shown) == 2 + 3 and len({line.count("|") for line in shown}) == 1  # three networks, T and batches


def test_make_bench_runs_them_all():
    assert {name for name, _, _ in cpu.RUNS} == {path.stem for path in HERE.glob("*_cpu.py")} | {"saved_bytes"}


def test_a_worker_measures_itself():
    """Resident memory of a process that returns large blocks is the memory of its tensors."""
    with Worker(Case("plain", NATIVE, 32, 64, 1), returning_blocks()) as worker:
        peak, kept = worker.ask("peak"), worker.ask("kept")
        assert worker.ask("step")["seconds"] > 0
        with pytest.raises(RuntimeError, match="has no attribute 'no such question'"):
            worker.ask("no such question")
        assert worker.ask("step")["seconds"] > 0  # and goes on
    # Some 30 MiB of tensors; 8 MiB for what is not a tensor: oneDNN's buffers, blocks under 64 KiB.
    assert kept["tensors"] > 20 << 20 and abs(peak["peak"] - kept["tensors"]) < 8 << 20, (peak, kept)
    assert kept["saved"] < kept["tensors"]


def test_a_worker_that_ends_says_why():
    with Worker(Case("plain", "magic", 2, 2, 1), returning_blocks()) as worker, \
            pytest.raises(RuntimeError, match="ended with status 1: ValueError: method 'magic'; allowed"):
        worker.ask("peak")


def test_high_water_misses_nothing():
    water = HighWater()
    water.start()
    torch.ones(16 << 20).sum()  # 64 MiB, and gone
    assert 60 << 20 < water.stop() < 72 << 20
    water.start()
    assert water.stop() < 4 << 20


def test_checkpoint_is_right():
    """Unlike a plain one: the state that its first run leaves must not enter the second, nor statistics move twice."""
    for network in NETWORKS:
        trained = {}
        for method in (NATIVE, CHECKPOINT):
            training = Training(network, method)
            for module in training.net.modules():  # the neurons fire
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    torch.nn.init.constant_(module.weight, 2.0)
            steps = []
            for _ in range(2):
                steps.append([g.clone() for g in first_step(training)[1]])
                training.step()
            trained[method] = steps, training.net.state_dict()
        for got, wanted in zip(trained[CHECKPOINT][0], trained[NATIVE][0]):
            assert distance(got, wanted) == 0  # the same operations
        for name, value in trained[NATIVE][1].items():
            assert torch.equal(trained[CHECKPOINT][1][name], value), name


def test_every_method_and_preference_is_a_rival():
    def exchange(framework, net, skip=None): ...
    def recompute(framework, net, prefer="balanced", skip=None): ...
    def auto(framework, net, sample=None, budget=None): ...

    assert ours({"neuron": exchange, "recompute": recompute, "auto": auto}) == {
        "neuron": ("neuron", {}), "recompute balanced": ("recompute", {"prefer": "balanced"}),
        "recompute memory": ("recompute", {"prefer": "memory"}), "recompute speed": ("recompute", {"prefer": "speed"})}
    assert "neuron" in OURS
    assert MEMOPT_STEM in rivals(SPIKFORMER) and MEMOPT_STEM not in rivals(VGG11)


def test_the_floor_by_hand():
    found = floor(NETWORKS[0])  # two layers of 4 channels, 8x8, T = 2, batch 2
    values = 3 * 4 * 9 + 4 * 4 * 9 + 2 * 2 * 4 + 4 * 10 + 10
    layer = 2 * 2 * 4 * 8 * 8
    assert (found.parameter_bytes, found.spikes, found.largest_bytes) == (4 * values, 2 * layer, 4 * layer)
    assert found.bytes == 8 * values + 2 * layer / 8 + 8 * layer
    assert found.columns(0)["of the floor"] == 4 * values / found.bytes
    # VGG-11's plan at 32x32: two wide maps, then two layers each at 8x8, 4x4 and 2x2
    spikes = 64 * 32**2 + 128 * 16**2 + 2 * 256 * 8**2 + 2 * 512 * 4**2 + 2 * 512 * 2**2
    assert floor(VGG11.at(1, 3)).spikes == 3 * spikes
    half = floor(NETWORKS[0], autocast=True)
    assert half.spikes == found.spikes and half.largest_bytes < found.largest_bytes


def test_asked_beside_measured():
    assert {bound.network for bound in BOUNDS} == {network.name for network in (VGG11, SEW_RESNET18, SPIKFORMER)}
    bounds = (Bound("a", "ours", "peak", NATIVE, 0.5), Bound("a", "ours", "time", MEMOPT[0], 1.0, under=True),
              Bound("b", "ours", "time", NATIVE, 1.0))
    rows = [{"network": "a", "T": 4, "method": "ours", "peak of native's": 0.5, "time of memopt's": 1.0,
             "time of memopt + stem's": 0.9}, {"network": "a", "T": 4, "method": MEMOPT_STEM},
            {"network": "a", "T": 8, "method": "ours", "peak of native's": 0.51}]
    assert [(v["T"], v["figure"], v["measured"], v["met"]) for v in verdicts(rows, bounds)] == [
        (4, "peak of native's", 0.5, True), (8, "peak of native's", 0.51, False), (4, "time of memopt's", 1.0, False),
        (4, "time of memopt + stem's", 0.9, True), (8, "time of memopt's", None, None)]


def test_out_of_time_and_failures_are_rows(elsewhere, capsys):
    run = _gpu.Run("nothing", "cpu", True, seconds=60)
    with pytest.raises(KeyboardInterrupt), run:  # saved whatever ends it
        run.add("rows", {"case": 1}, lambda: {"figure": 2})
        run.add("rows", {"case": 2}, lambda: 1 / 0)
        run.end = time.monotonic() - 1
        run.add("other", {"case": 3}, lambda: {"figure": 2})
        raise KeyboardInterrupt
    data = results(elsewhere, "nothing")
    assert data["rows"] == [{"case": 1, "figure": 2}, {"case": 2, "failed": "ZeroDivisionError: division by zero"}]
    assert data["other"] == [{"case": 3, "failed": "not measured: out of time"}]


def test_driver_survives_failures(elsewhere, monkeypatch, capsys):
    written = {"rows": [{"failed": "why"}], "summary": [{"benchmark": "memory_gpu", "what": "a peak"}]}
    stale = elsewhere / "neurons_gpu.json"
    stale.write_text(json.dumps({"rows": [], "summary": [{"benchmark": "neurons_gpu", "what": "of an earlier run"}]}))
    os.utime(stale, (time.time() - 60,) * 2)
    programs = {
        "neurons_gpu": "raise SystemExit(3)",
        "training_step_gpu": "import time; time.sleep(60)",
        "memory_gpu": f"import pathlib; pathlib.Path({str(elsewhere)!r}, 'memory_gpu.json').write_text("
                      f"{json.dumps(written)!r})",
    }
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(gpu, "command", lambda name, seconds: [sys.executable, "-c", programs[name]])
    start = time.monotonic()
    assert gpu.main(["--seconds", "5"]) == 1
    assert time.monotonic() - start < 10
    said = capsys.readouterr().out
    assert "exit status 3" in said and gpu.KILLED in said and "a peak" in said and "cases without a figure" in said
    assert "earlier" not in said
    assert said.index("main figures") < said.index("outcome")


def test_skips_without_a_gpu(capsys, monkeypatch, elsewhere):
    monkeypatch.setattr(cuda, "unavailable", lambda: "Torch sees no CUDA device")
    for module in (gpu, neurons_gpu, training_step_gpu, memory_gpu):
        assert module.main([]) == 0
        said = capsys.readouterr().out.strip()
        assert said.endswith("skipped, Torch sees no CUDA device") and "\n" not in said
    assert not list(elsewhere.iterdir())
