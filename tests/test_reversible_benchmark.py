"""The benchmark of reversible blocks runs, unattended, in tiny sizes, and judges its figures as it says."""
import json

import pytest
import torch

pytest.importorskip("spikingjelly")

from benchmarks import readme, reversible_depth_cpu
from benchmarks._depth_cases import CHECKPOINT, METHODS, PLAIN, REVERSIBLE, Case, Training


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go to a folder of the test's own. One thread: the sizes are tiny."""
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_reversible_depth_cpu(elsewhere, monkeypatch):
    reversible_depth_cpu.main(["--quick", "--threads", "1"])
    data = json.loads((elsewhere / "reversible_depth_cpu.json").read_text())
    assert [(r["blocks"], r["method"]) for r in data["rows"]] == [(d, m) for d in (1, 2) for m in METHODS]
    for row in data["rows"]:
        assert "failed" not in row, row
        assert row["step, ms"] > 0 and row["gradients unlike plain's"] < 1e-5  # fused neurons' contract; others: 0
        assert 0.1 < row["firing rate"] < 0.4
    peaks = {(r["blocks"], r["method"]): r["peak, MiB"] for r in data["rows"]}
    kept = {(r["blocks"], r["method"]): r["kept, MiB"] for r in data["rows"]}
    assert peaks[2, REVERSIBLE] < peaks[2, PLAIN] and abs(peaks[2, REVERSIBLE] / peaks[1, REVERSIBLE] - 1) < 0.01
    assert kept[2, CHECKPOINT] > 1.9 * kept[1, CHECKPOINT]
    assert all(v["met"] for v in data["asked"]) and len(data["asked"]) == 3
    assert (elsewhere / "reversible_depth_cpu.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(readme, "RESULTS", elsewhere)
    shown = readme.reversible_depth_cpu().splitlines()
    assert len(shown) == 2 + 2 * len(METHODS) and len({line.count("|") for line in shown}) == 1


def test_every_method_trains_the_same_network():
    wanted = None
    for method in METHODS:
        training = Training(Case(3, method, 2, 4))
        loss = training.step()
        wanted = loss if wanted is None else wanted
        assert torch.equal(loss, wanted), method
    with pytest.raises(ValueError, match="allowed"):
        Training(Case(1, "other"))
