"""Writes the README's tables from the committed result files. A test fails when the two differ.

    python -m benchmarks.readme            # after new results are in benchmarks/results/
"""
from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def demo() -> str:
    rows = json.loads((RESULTS / "demo.json").read_text())
    native = {row["framework"]: row for row in rows if row["method"] == "native"}
    table = []
    for row in rows:
        first = native[row["framework"]]
        table.append([f"{row['framework']}, {row['method']}",
                      f"{row['peak_mib']:.0f} MiB ({row['peak_mib'] / first['peak_mib']:.2f}x)",
                      f"{row['saved_mib']:.0f} MiB ({row['saved_mib'] / first['saved_mib']:.2f}x)",
                      f"{row['step_s'] * 1e3:.0f} ms ({row['step_s'] / first['step_s']:.2f}x)",
                      f"{row['accuracy']:.2%}", "yes" if row["spikes_identical"] else "NO"])
    return markdown(["MNIST, one epoch", "peak over base", "saved for backward", "time per step", "test accuracy",
                     "spikes identical"], table)


def neurons_cpu() -> str:
    table = []
    for name, allocator in (("neurons_cpu", "default"), ("neurons_cpu_reuse", "reuses blocks")):
        for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]:
            if row["surrogate"] in ("Sigmoid", "ATan", "default (atan)"):
                table.append([f"{row['layer']}, {row['surrogate']}", str(row["threads"]), allocator,
                              f"{row['framework, ns']:.2f}", f"{row['ours, ns']:.2f}", f"{row['times faster']:.1f}x",
                              f"{row['same bytes, memory there, ns']:.2f}"])
    return markdown(["forward + backward, ns per element and step", "threads", "allocator", "framework", "ours",
                     "faster", "moving the same bytes"], table)


def saved_bytes() -> str:
    rows = json.loads((RESULTS / "saved_bytes.json").read_text())["rows"]
    table = [[f"{row['layer']}, {row['dtype']}", str(row["T"]), f"{row['framework, B']:.2f}", f"{row['ours, B']:.2f}"]
             for row in rows]
    return markdown(["bytes kept for the backward pass, per element and step", "T", "framework", "ours"], table)


TABLES = {"demo": demo, "neurons_cpu": neurons_cpu, "saved_bytes": saved_bytes}


def refreshed(text: str) -> str:
    """The README's text with every marked table made anew."""
    for name, make in TABLES.items():
        marked = rf"(<!-- {name} -->\n)(?:(?!<!--).)*(<!-- end -->)"
        text = re.sub(marked, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(refreshed(readme.read_text()))
