"""The README's table of published architectures, from benchmarks/results/zoo_cpu.json."""
from __future__ import annotations

import json
from pathlib import Path

__all__ = ["zoo_rows"]

_PEAK = "peak of native's"
_METHODS = ("neuron", "compress", "recompute balanced", "recompute memory", "checkpoint blocks")


def zoo_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a row per family; per method the share of native's peak, and the largest distance of any."""
    data = json.loads(path.read_text())
    families: dict[str, dict[str, dict]] = {}
    for row in data["rows"]:
        families.setdefault(row["family"], {})[row["method"]] = row
    table = []
    for name, found in families.items():
        if "failed" in found.get("native", {}):
            table.append([name, found["native"]["failed"], *[""] * (len(_METHODS) + 1)])
            continue
        shares = [f"{found[m][_PEAK]:.2f}x" if m in found else "-" for m in _METHODS]
        apart = max(row["gradients apart"] for row in found.values())
        table.append([name, f"{found['native']['peak, MiB']:.0f} MiB", *shares, f"{apart:.0e}"])
    sizes = next(row for row in data["rows"] if "failed" not in row)
    of = f"published code, T = {sizes['T']}, batch {sizes['batch']}, {sizes['size']}x{sizes['size']}"
    header = [of, "native's peak", *_METHODS, "gradients unlike native's, at most"]
    return header, table
