"""Reversible blocks on the CPU: peak memory, time and gradients of a training step against the number of blocks.

    python -m benchmarks.reversible_depth_cpu [--rounds 3] [--threads 2] [--seconds 690] [--quick]

Network and methods: benchmarks._depth_cases. Peak: live tensors of a step, over network and batch, less the gradients
of parameters, of which more blocks have more. Resident: a step in a fresh process. Time: loss and gradients, all
methods of a depth in turns, in one process.
"""
from __future__ import annotations

import argparse
import functools
import gc
import subprocess
import time
from pathlib import Path

import torch

from benchmarks._asked import passed
from benchmarks._depth_cases import BATCH, CHECKPOINT, METHODS, PLAIN, REVERSIBLE, WIDTH, Case, Training
from benchmarks._measure import HERE, in_turns, quantiles, ratio, results_folder, save, table
from benchmarks._resident import RETURNS_BLOCKS, resident, returning_blocks
from benchmarks._training import distance
from shared_core.memory import measure

MIB = 1 << 20
DEPTHS, QUICK = (4, 8, 16, 32, 64), (1, 2)
COLUMNS = ["blocks", "method", "peak, MiB", "peak of plain's", "resident, MiB", "kept, MiB", "step, ms",
           "time of plain's", "gradients unlike plain's"]


def memory(case: Case) -> tuple[dict, list[torch.Tensor]]:
    """Peak of live tensors, and bytes kept for the backward pass; gradients of the same step."""
    training = Training(case)
    training.step()  # the first one checks every block
    training.rest()
    found = measure(training.step, timeline=False)
    own = sum(p.numel() * p.element_size() for p in training.net.parameters())
    return {"peak, MiB": (found.peak_bytes - own) / MIB, "kept, MiB": found.saved_bytes / MIB}, training.gradients()


def at_depth(depth: int, args, batch: int, width: int, end: float) -> list[dict]:
    """A row per method."""
    rows, wanted, trainings = [], None, {}
    run = functools.partial(subprocess.run, capture_output=True, text=True, env=returning_blocks(), cwd=HERE.parent)
    for method in METHODS:
        print(f"{depth} blocks, {method}", flush=True)
        case = Case(depth, method, batch, width, args.threads)
        row = {"blocks": depth, "batch": batch, "width": width, "method": method}
        rows.append(row)
        try:
            if time.monotonic() > end:
                raise TimeoutError("not measured: out of time")
            found, gradients = memory(case)
            wanted = gradients if method == PLAIN else wanted
            row |= found | {"gradients unlike plain's": distance(gradients, wanted)}
            if not args.quick:
                high = resident("benchmarks._depth_cases", case, run)
                row |= {"resident, MiB": high["resident"] / MIB, "resident from": high["how"]}
            trainings[method] = Training(case)
            trainings[method].net.check = False
            row["firing rate"] = trainings[method].firing_rate()
        except Exception as problem:
            row["failed"] = f"{problem}"
        gc.collect()
    seconds = in_turns({m: t.step for m, t in trainings.items()}, args.rounds) if trainings else {}
    peaks = {row["method"]: row.get("peak, MiB") for row in rows}
    for row in rows:
        method = row["method"]
        if method in seconds:
            spread = quantiles(seconds[method])
            row |= {"step, ms": spread["median"] * 1e3, "step, p20-p80": [spread["p20"] * 1e3, spread["p80"] * 1e3]}
        for rival in (PLAIN, CHECKPOINT):
            if peaks.get(rival) and peaks[method]:
                row[f"peak of {rival}'s"] = peaks[method] / peaks[rival]
            if rival in seconds and method in seconds:
                row[f"time of {rival}'s"] = ratio(seconds, method, rival)["median"]
    return rows


def verdicts(rows: list[dict]) -> list[dict]:
    """A row per figure asked for; "measured" and "met" are None where there is no figure."""
    found = []

    def add(depth: int | str, figure: str, most: float, measured: float | None) -> None:
        found.append({"blocks": depth, "method": REVERSIBLE, "figure": figure, "asked": f"at most {most:g}",
                      "measured": measured, "met": None if measured is None else measured <= most})

    line = [row for row in rows if row["method"] == REVERSIBLE]
    for row in line:
        add(row["blocks"], "gradients unlike plain's", 1e-6, row.get("gradients unlike plain's"))
    peaks = [row["peak, MiB"] for row in line if "peak, MiB" in row]
    if len(peaks) > 1:
        add(f"{line[0]['blocks']}-{line[-1]['blocks']}", "highest peak over lowest", 1.02, max(peaks) / min(peaks))
    return found


def plot(rows: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    for axes, column, label in zip(figure.subplots(1, 2), ("peak, MiB", "step, ms"),
                                   ("peak of live tensors, MiB", "one training step, ms")):
        for method in METHODS:
            line = [row for row in rows if row["method"] == method and column in row]
            axes.plot([row["blocks"] for row in line], [row[column] for row in line], marker=".", label=method,
                      color="black" if method == PLAIN else None)
        depths = sorted({row["blocks"] for row in rows})
        axes.set(xlabel="reversible blocks", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.legend(fontsize="small")
    figure.suptitle(f"T = 4, batch {rows[0]['batch']}, 2 x {rows[0]['width']} channels, 16 x 16")
    figure.savefig(path, format="png", dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=690, help="what is not begun by then is left out, and said so")
    parser.add_argument("--quick", action="store_true", help="a few small steps in one process: does it run?")
    args = parser.parse_args(argv)
    args.rounds = 1 if args.quick else args.rounds
    before, end = torch.get_num_threads(), time.monotonic() + args.seconds
    torch.set_num_threads(args.threads)
    batch, width = (2, 4) if args.quick else (BATCH, WIDTH)
    rows: list[dict] = []
    asked: list[dict] = []
    try:
        Training(Case(1, PLAIN, 2, 4)).step()  # libraries are loaded before anything counts
        for depth in QUICK if args.quick else DEPTHS:
            rows += at_depth(depth, args, batch, width, end)
            asked = verdicts(rows)
            save("reversible_depth_cpu", rows, asked=asked, threads=args.threads, rounds=args.rounds,
                 quick=args.quick, allocator={"resident": RETURNS_BLOCKS, "time": "glibc's defaults"})
    finally:
        torch.set_num_threads(before)
    table("one training step of reversible blocks", rows, COLUMNS)
    table("failed", [row for row in rows if "failed" in row], ["blocks", "method", "failed"])
    table("asked and measured", [{**row, "met": passed(row)} for row in asked],
          ["blocks", "method", "figure", "asked", "measured", "met"])
    if not any("peak, MiB" in row for row in rows):
        print("written: reversible_depth_cpu.json (no plot: no peaks)")
        return
    try:
        plot(rows, results_folder() / "reversible_depth_cpu.png")
        print("written: reversible_depth_cpu.json and reversible_depth_cpu.png")
    except ImportError as problem:
        print(f"written: reversible_depth_cpu.json (no plot: {problem})")


if __name__ == "__main__":
    main()
