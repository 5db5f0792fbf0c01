"""The benchmark of both reversibilities runs, and its file says what is compared."""
import json

import pytest

from benchmarks import t_revsnn_both


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    t_revsnn_both.main(["--quick", "--time"])
    found = json.loads((tmp_path / "t_revsnn_both.json").read_text())
    rows = {row["reversible in"]: row for row in found["rows"]}
    assert list(rows) == ["none", "time", "depth", "both"] and len(found["times"]) == 4
    assert rows["both"]["MB per image"] < min(rows["time"]["MB per image"], rows["depth"]["MB per image"])
    assert max(row["gradients unlike none's"] for row in rows.values()) < 1e-5  # as allowed in a state
    assert {row["figure"] for row in found["table_6"]} == set(t_revsnn_both.TABLE_6)
