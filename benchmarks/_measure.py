"""Timing and bookkeeping shared by every benchmark: rivals in turns, medians, and what the figures were taken on."""
from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def in_turns(rivals: dict[str, Callable[[], None]], rounds: int = 7, synchronize: Callable[[], None] = lambda: None
             ) -> dict[str, list[float]]:
    """Seconds of each rival in each round, after one round of warm-up. All run in every round, so that a slow moment
    of the machine hits them alike and the ratios of one round can be trusted."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, run in rivals.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quantiles(values: list[float]) -> dict[str, float]:
    """median, p20 and p80."""
    ordered = sorted(values)
    at = lambda q: ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]  # noqa: E731
    return {"median": statistics.median(ordered), "p20": at(0.2), "p80": at(0.8)}


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is than `slow`, round by round."""
    return quantiles([a / b for a, b in zip(seconds[slow], seconds[fast])])


def results_folder() -> Path:
    """benchmarks/results, or the folder that MEMEXT_RESULTS names."""
    return Path(os.environ.get("MEMEXT_RESULTS") or HERE / "results")


def _git(*arguments: str) -> str:
    """What git prints, '' where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=HERE).stdout.strip()
    except OSError:
        return ""


def machine() -> dict[str, object]:
    """Processor, threads, versions and commit: what a figure needs beside it.

    A copy of the tree without git has no commit; MEMEXT_COMMIT can name it.
    """
    commit = _git("rev-parse", "--short", "HEAD") or os.environ.get("MEMEXT_COMMIT", "unknown")
    dirty = _git("status", "--porcelain", "--", "shared_core", "sj_memext", "snntorch_memext")
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0] if names else cpu
    versions = {}
    for package in ("torch", "spikingjelly", "snntorch", "triton", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    found = {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions,
             "commit": commit + ("+changes" if dirty else "")}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found.update(gpu=torch.cuda.get_device_name(), capability=f"{major}.{minor}", cuda=torch.version.cuda)
    return found


def save(name: str, rows: list[dict], **more: object) -> Path:
    """Write NAME.json into results_folder(): {machine, rows, ...}."""
    folder = results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **more, "rows": rows}, indent=1) + "\n")
    return path


def table(title: str, rows: list[dict], columns: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    shown = Table(title=title)
    for column in columns:
        shown.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        shown.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in (row.get(c, "") for c in columns)))
    Console(width=130).print(shown)
