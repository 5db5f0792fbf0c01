"""The benchmark of shared membranes runs, and its table can be made."""
from __future__ import annotations

import json

import pytest

pytest.importorskip("spikingjelly")

from benchmarks import readme, sharing_cpu


def test_sharing_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(sharing_cpu.torch, "set_num_threads", lambda count: None)
    sharing_cpu.main(["--quick", "--networks", "vgg16"])
    rows = json.loads((tmp_path / "sharing_cpu.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(sharing_cpu.VARIANTS)
    assert not [row for row in rows if "failed" in row]
    by_variant = {row["variant"]: row for row in rows}
    native, shared = by_variant[sharing_cpu.NATIVE], by_variant["[L+C#2]"]
    assert shared["membranes, MiB"] == by_variant["[L]"]["membranes, MiB"] / 2 < native["membranes, MiB"] / 2
    assert shared["kept, MiB"] < native["kept, MiB"]
    lines = readme.sharing_cpu().splitlines()
    assert len(lines) == len(rows) + 2 and lines[2].startswith("| vgg16, native, multi-step | ")
