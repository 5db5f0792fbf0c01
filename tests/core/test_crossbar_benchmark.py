"""The accuracy benchmark runs, in a tiny size on images of noise; what its result file says follows from its rows."""
import json
import struct

import numpy as np
import pytest
import torch

pytest.importorskip("spikingjelly")

from benchmarks import crossbar_accuracy


def test_crossbar_accuracy(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    monkeypatch.setenv("MEMEXT_CACHE", str(tmp_path / "cache"))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 140), ("t10k", 20)):
        pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, n) + (np.arange(n) % 10).astype(np.uint8).tobytes())
    threads = torch.get_num_threads()
    crossbar_accuracy.main(["--data", str(tmp_path), "--quick", "--seeds", "2", "--test", "10"])
    assert torch.get_num_threads() == threads
    found = json.loads((tmp_path / "crossbar_accuracy.json").read_text())
    variants = [*crossbar_accuracy.VARIANTS, *crossbar_accuracy.MORE]
    assert [r["variant"] for r in found["rows"] if r["seed"] == 1] == ["clean", "quantised", *variants,
                                                                        *crossbar_accuracy.VARIANTS]
    assert {r["training, s"] is None for r in found["rows"] if r["variant"] == "clean"} == {False}
    of = {(r["strength"], r["variant"], r["seed"]): r["accuracy"] for r in found["rows"]}
    for row in found["summary"]:
        values = [of[row["strength"], row["variant"], seed] for seed in (0, 1)]
        assert row["accuracy"] == pytest.approx(sum(values) / 2) and row["lowest"] == min(values)
    for row in found["asked"]:
        gains = [of["-" if row["more"] == "quantised" else row["strength"], row["more"], seed]
                 - of[row["strength"], row["less"], seed] for seed in (0, 1)]
        assert row["gain"] == pytest.approx(sum(gains) / 2) and row["in all seeds"] == (min(gains) > 0)
    again = json.loads((tmp_path / "crossbar_accuracy.json").read_text())
    crossbar_accuracy.main(["--data", str(tmp_path), "--quick", "--seeds", "1", "--test", "10"])
    once = json.loads((tmp_path / "crossbar_accuracy.json").read_text())
    assert once["rows"][0]["training, s"] is None, "the weights are kept"
    assert [r["accuracy"] for r in once["rows"]] == [r["accuracy"] for r in again["rows"] if r["seed"] == 0]


def test_missing_data_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        crossbar_accuracy.main(["--data", str(tmp_path)])
    assert "MNIST/raw is missing; --data DIR needs" in capsys.readouterr().err
