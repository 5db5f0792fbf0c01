"""The accuracy benchmark and the example of shared membranes run, in tiny sizes; splits hold nothing twice."""
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spikingjelly")

from benchmarks import _sharing_accuracy as runs
from benchmarks import _sharing_data as data
from benchmarks import accuracy_sharing

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go to a folder of the test's own. One thread: the sizes are tiny."""
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_activities(elsewhere, monkeypatch):
    monkeypatch.setitem(accuracy_sharing.TABLES, "activities", [(data.RANDOM, runs.SOFT), (data.BY_SUBJECT, runs.HARD)])
    accuracy_sharing.main(["--quick"])
    found = json.loads((elsewhere / "accuracy_sharing.json").read_text())
    assert [(r["split"], r["reset"], r["variant"]) for r in found["rows"]] == [
        (split, reset, variant) for split, reset in ((data.RANDOM, runs.SOFT), (data.BY_SUBJECT, runs.HARD))
        for variant in runs.VARIANTS]
    assert all(0 <= r["accuracy"] <= 1 and 0 < r["spike rate"] < 1 and r["training steps"] == 3 for r in found["rows"])
    assert {v["variant"] for v in found["asked"]} == {"[L]", "[C#2]", "[L+C#2]"}
    by_variant = {(r["reset"], r["variant"]): r for r in found["summary"]}
    assert by_variant[runs.SOFT, "[L]"]["to native of its kind"] == pytest.approx(
        by_variant[runs.SOFT, "[L]"]["accuracy"] - by_variant[runs.SOFT, runs.OUTERMOST]["accuracy"])


def test_late_runs_are_left_out_and_said_so_and_resumed(elsewhere, monkeypatch):
    def rows(*more):
        accuracy_sharing.main(["--quick", *more])
        return json.loads((elsewhere / "accuracy_sharing.json").read_text())["rows"]

    monkeypatch.setitem(accuracy_sharing.TABLES, "activities", [(data.RANDOM, runs.SOFT)])
    first = rows()
    monkeypatch.setitem(accuracy_sharing.TABLES, "activities", [(data.RANDOM, runs.SOFT), (data.RANDOM, runs.HARD)])
    late = rows("--resume", "--seconds", "1e-9")
    assert late[:len(first)] == first and {row["failed"] for row in late[len(first):]} == {runs.LATE}
    rest = rows("--resume")
    assert rest[:len(first)] == first and len(rest) == len(late) and all("accuracy" in row for row in rest)


def test_digits_in_the_time_there_is(tmp_path, elsewhere):
    """A folder of MNIST's four files, of noise."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 80), ("t10k", 16)):
        pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, n) + (np.arange(n) % 10).astype(np.uint8).tobytes())
    accuracy_sharing.main(["--task", "mnist", "--data", str(tmp_path), "--quick"])
    found = json.loads((elsewhere / "accuracy_sharing_mnist.json").read_text())
    assert [r["variant"] for r in found["rows"]] == list(runs.VARIANTS) and found["parts"] == [72, 8, 16]
    assert len({r["training steps"] for r in found["rows"]}) == 1


def test_missing_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"cifar10_jpeg is missing"):
        accuracy_sharing.main(["--task", "cifar10", "--data", str(tmp_path), "--quick"])
    with pytest.raises(SystemExit, match=r"motionsense.npz is missing"):
        accuracy_sharing.main(["--data", str(tmp_path), "--quick"])
    with pytest.raises(SystemExit):
        accuracy_sharing.main(["--task", "mnist"])


@pytest.mark.parametrize("how", [data.RANDOM, data.BY_SUBJECT])
def test_splits(how):
    """64/16/20, of windows or of people; nothing in two parts; the same for the same seed, another for another."""
    split, again, other = (data.activities(None, how, seed) for seed in (0, 0, 1))
    _, _, subjects = data._windows(None)
    total = len(subjects) if how == data.RANDOM else len(subjects.unique())
    sizes = [len(part) for part in split]
    assert sum(sizes) == len(subjects)
    if how == data.RANDOM:
        assert sizes == [round(total * 0.64), round(total * 0.8) - round(total * 0.64), total - round(total * 0.8)]
    assert all(torch.equal(a.x, b.x) for a, b in zip(split, again)) and not torch.equal(split.test.y, other.test.y)
    rows = torch.cat([part.x.flatten(1) for part in split])
    assert len(rows.unique(dim=0)) == len(torch.unique(data._windows(None)[0].flatten(1), dim=0))
    assert split.train.x.std((0, 2)) == pytest.approx(torch.ones(6), abs=1e-3)
    assert all(part.y.unique().tolist() == list(range(6)) for part in split)  # every activity everywhere


def test_a_window_is_cut_in_order():
    x = torch.arange(2 * 6 * 128.0).view(2, 6, 128)
    pieces = runs.encode(x, 4)
    assert pieces.shape == (4, 2, 6, 32) and torch.equal(torch.cat(list(pieces), -1), x)
    assert runs.encode(torch.zeros(2, 1, 28, 28), 4).shape == (4, 2, 1, 28, 28)


def test_all_variants_start_from_the_same_weights():
    setting = accuracy_sharing.QUICK["activities"]
    nets = [runs.build("activities", variant, runs.SOFT, setting, 3).state_dict() for variant in runs.VARIANTS]
    for state in nets[1:]:
        assert state.keys() == nets[0].keys() and all(torch.equal(state[key], nets[0][key]) for key in state)


def test_example(tmp_path, capsys):
    import efficient_lif

    rows = efficient_lif.main(["--quick", "--out", str(tmp_path / "new" / "folder")])
    assert json.loads((tmp_path / "new" / "folder" / "efficient_lif.json").read_text()) == rows
    by = {row["sharing"]: row for row in rows}
    assert list(by) == ["baseline", "L", "C#2", "L+C#2"]
    # Five membranes of 32 x 32 floats; [L] has one, and T = 4 times as much is counted for the baseline's backward.
    assert [row["forward_kib"] for row in rows] == [20, 4, 10, 2]
    assert [row["backward_kib"] for row in rows] == [80, 4, 10, 2]
    printed = capsys.readouterr().out
    assert all(f"{row['accuracy']:.1%}" in printed and 0 < row["spike_rate"] < 1 for row in rows)
    assert by["L"]["peak_mib"] < by["baseline"]["peak_mib"]
