"""`make bench-gpu`: every GPU benchmark, one process each, within a time budget; a table of the main figures last.

    python -m benchmarks.gpu [--seconds 480]

A benchmark that fails, crashes or overruns is reported and does not stop the others. Exit status: 1 if any did.
Results go to benchmarks/results/, or to the folder that MEMEXT_RESULTS names.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks._measure import results_folder, table

SHARES = {"neurons_gpu": 0.36, "training_step_gpu": 0.48, "memory_gpu": 0.16}  # of the time
STARTING = 20.0  # seconds of each budget that go to imports and to the case that runs when time is up
KILLED = "stopped: over its time"


def command(name: str, seconds: float) -> list[str]:
    """How a benchmark is started. It stops measuring `STARTING` seconds before it would be killed."""
    return [sys.executable, "-m", f"benchmarks.{name}", "--seconds", f"{max(seconds - STARTING, 1):.0f}"]


def run_one(argv: Sequence[str], seconds: float) -> dict[str, object]:
    """Runs a command, its output going where ours goes; kills it after `seconds`."""
    start = time.monotonic()
    try:
        code = subprocess.run(argv, timeout=seconds).returncode
        outcome = "ok" if code == 0 else f"failed: exit status {code}"
    except subprocess.TimeoutExpired:
        outcome = KILLED
    except OSError as problem:
        outcome = f"failed: {problem}"
    return {"outcome": outcome, "seconds": time.monotonic() - start}


def summary(name: str, since: float) -> list[dict]:
    """The main figures that a benchmark wrote after the time `since`; [] if it wrote none."""
    path = results_folder() / f"{name}.json"
    if not path.exists() or path.stat().st_mtime < since:
        return []
    data = json.loads(path.read_text())
    failures = sum("failed" in row for rows in data.values() if isinstance(rows, list) for row in rows)
    note = [{"benchmark": name, "what": "cases without a figure (reasons in the JSON)", "ours": failures}]
    return data["summary"] + (note if failures else [])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="for all together (%(default)g)")
    total = parser.parse_args(argv).seconds

    from shared_core.backends import cuda

    if cuda.unavailable():
        print(f"GPU benchmarks: skipped, {cuda.unavailable()}")
        return 0
    since, runs, figures = time.time() - 1, [], []
    for name, share in SHARES.items():
        print(f"--- {name}, at most {total * share:.0f} s", flush=True)
        runs.append({"benchmark": name, **run_one(command(name, total * share), total * share)})
        figures += summary(name, since)
    if figures:
        table("main figures", figures, ["benchmark", "what", "framework", "ours", "unit", "times better"])
    table("runs", runs, ["benchmark", "outcome", "seconds"])
    return 0 if all(run["outcome"] == "ok" for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
