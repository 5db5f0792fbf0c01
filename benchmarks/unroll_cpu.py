"""Stepping through time on the CPU: peak, time and bytes kept of a training step, plain BPTT against `unroll`.

    python -m benchmarks.unroll_cpu [--rounds 3] [--threads 2] [--seconds 690] [--quick]

Networks and methods: benchmarks._unroll_cases. Peak: live tensors of a step, over network, input and batch. Resident:
a step in a fresh process. Time: loss and gradients, all methods of a network in turns, in one process.
"""
from __future__ import annotations

import argparse
import functools
import gc
import math
import subprocess
import time
from pathlib import Path

import torch

from benchmarks._asked import passed
from benchmarks._measure import HERE, in_turns, quantiles, ratio, results_folder, save, table
from benchmarks._resident import RETURNS_BLOCKS, resident, returning_blocks
from benchmarks._training import distance
from benchmarks._unroll_cases import (
    AT_ONCE,
    BATCH,
    CHECKPOINT,
    CHUNKS,
    DIVIDED,
    EXACT,
    METHODS,
    NEURON,
    PLAIN,
    REVERSE,
    SLTT,
    Case,
    Training,
)
from shared_core.memory import measure

MIB = 1 << 20
LATE = "not measured: out of time"
STEPS = {"conv_leaky": 400, "conv_lif": 200}
RIVALS = {"conv_leaky": METHODS, "conv_lif": (PLAIN, CHUNKS, CHECKPOINT, REVERSE, DIVIDED, SLTT)}
RESIDENT = (PLAIN, CHUNKS, CHECKPOINT, REVERSE, DIVIDED, SLTT)  # in a fresh process, which takes its time
GROWTH = (50, 100, 200, 400, 800, 1600)
GROWING = {PLAIN: 400, SLTT: 1600, REVERSE: 1600, CHUNKS: 800, CHECKPOINT: 800}  # method -> most steps
QUICK = {"steps": {"conv_leaky": 5, "conv_lif": 3}, "growth": (2, 5), "batch": 2}
COLUMNS = ["network", "T", "method", "peak, MiB", "peak of plain's", "resident, MiB", "kept, B", "step, ms",
           "time of plain's", "time of torch checkpoint's", "gradients unlike plain's"]


class Clock:
    """Whether there is time for another measurement."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise TimeoutError(LATE)


def tensors(case: Case) -> tuple[dict, list[torch.Tensor]]:
    """Peak of live tensors, and bytes kept for the backward pass per neuron and step; gradients of the same step."""
    training = Training(case)
    elements = training.neurons() * case.steps
    found = measure(training.step, timeline=False)
    peak, saved = found.peak_by_device["cpu"], found.saved_by_device.get("cpu", 0)  # no memory on "meta" tensors
    row = {"peak, MiB": peak / MIB, "kept, B": saved / elements}
    return row, training.gradients()


def compared(network: str, steps: int, batch: int, args, clock: Clock) -> list[dict]:
    """Every method of one network at one number of steps: memory, agreement with plain, time."""
    rows, wanted = [], None
    run = functools.partial(subprocess.run, capture_output=True, text=True, env=returning_blocks(), cwd=HERE.parent)
    trainings = {}
    for method in RIVALS[network]:
        print(f"{network}, T = {steps}, {method}", flush=True)
        case = Case(network, method, steps, batch, args.threads)
        row = {"network": network, "T": steps, "batch": batch, "method": method}
        rows.append(row)
        try:
            clock.check()
            memory, gradients = tensors(case)
            wanted = gradients if method == PLAIN else wanted
            row |= memory | {"gradients unlike plain's": distance(gradients, wanted)}
            if not args.quick and method in RESIDENT:
                found = resident("benchmarks._unroll_cases", case, run)
                row |= {"resident, MiB": found["resident"] / MIB, "resident from": found["how"]}
            trainings[method] = Training(case)
        except Exception as problem:
            row["failed"] = f"{problem}"
    seconds = {}
    try:
        seconds = in_turns({m: t.step for m, t in trainings.items()}, args.rounds)
    except Exception as problem:
        print(f"no times, a step failed: {problem}")
    _add_ratios(rows, seconds)
    return rows


def _add_ratios(rows: list[dict], seconds: dict[str, list[float]]) -> None:
    peaks = {row["method"]: row.get("peak, MiB") for row in rows}
    for row in rows:
        method = row["method"]
        if method in seconds:
            spread = quantiles(seconds[method])
            row |= {"step, ms": spread["median"] * 1e3, "step, p20-p80": [spread["p20"] * 1e3, spread["p80"] * 1e3]}
        for rival in (PLAIN, CHUNKS):
            if peaks.get(rival) and peaks[method]:
                row[f"peak of {rival}'s"] = peaks[method] / peaks[rival]
            if rival in seconds and method in seconds:
                row[f"time of {rival}'s"] = ratio(seconds, method, rival)["median"]


def growing(points: tuple[int, ...], batch: int, args, clock: Clock, known: list[dict] = ()) -> list[dict]:
    """Peak and bytes kept of the snnTorch network against the number of steps, short ones first. known: rows that
    `compared` has measured already."""
    there = {(row["T"], row["method"]): row for row in known if row["network"] == "conv_leaky" and "failed" not in row}
    rows = []
    for steps in points:
        for method, most in GROWING.items():
            if steps > most:
                continue
            if (steps, method) in there:
                rows.append(there[steps, method])
                continue
            print(f"conv_leaky, T = {steps}, {method}", flush=True)
            row = {"network": "conv_leaky", "T": steps, "batch": batch, "method": method}
            try:
                clock.check()
                row |= tensors(Case("conv_leaky", method, steps, batch, args.threads))[0]
            except Exception as problem:
                row["failed"] = f"{problem}"
            rows.append(row)
            gc.collect()
    return rows


# ---- what was asked --------------------------------------------------------------------------------------------------


def verdicts(rows: list[dict], growth: list[dict]) -> list[dict]:
    """A row per figure asked for; "measured" and "met" are None where there is no figure."""
    found = []

    def add(row: dict, figure: str, most: float, measured: float | None) -> None:
        found.append({"network": row["network"], "T": row["T"], "method": row["method"], "figure": figure,
                      "asked": f"at most {most:.3g}", "measured": measured,
                      "met": None if measured is None else measured <= most})

    for row in rows:
        if row["method"] == REVERSE:
            add(row, "peak of plain's", 1 / 50, row.get("peak of plain's"))
            add(row, "time of plain's", 1.25, row.get("time of plain's"))
        if row["method"] in AT_ONCE:
            add(row, "time of plain's", 1.0, row.get("time of plain's"))
        if row["method"] in EXACT and row["method"] != NEURON:
            add(row, "gradients unlike plain's", 1e-5, row.get("gradients unlike plain's"))
    for row in growth:
        if row["method"] == REVERSE:  # a bit, and the anchors' float32 states
            anchors = math.ceil((math.sqrt(8 * row["T"] + 1) - 1) / 2)
            add(row, "kept, B per neuron and step", 1 / 8 + 4 * anchors / row["T"], row.get("kept, B"))
    flat = [row for row in growth if row["method"] == SLTT and "peak, MiB" in row]
    peaks = [row["peak, MiB"] for row in flat]
    if len(peaks) > 1:
        add({**flat[0], "T": f"{flat[0]['T']}-{flat[-1]['T']}"}, "highest peak over lowest", 1.02,
            max(peaks) / min(peaks))
    return found


def plot(growth: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    for axes, column, label in zip(figure.subplots(1, 2), ("peak, MiB", "kept, B"),
                                   ("peak of live tensors, MiB", "kept for the backward, B per neuron and step")):
        for method in GROWING:
            line = [row for row in growth if row["method"] == method and column in row]
            axes.plot([row["T"] for row in line], [row[column] for row in line], marker=".", label=method,
                      color="black" if method == PLAIN else None)
        if column == "kept, B":
            axes.axhline(1 / 8, linestyle="--", color="grey", label="one bit")
        axes.set(xlabel="time steps", ylabel=label, xscale="log", yscale="log")
        lengths = sorted({row["T"] for row in growth})
        axes.set_xticks(lengths, [str(steps) for steps in lengths])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.legend(fontsize="small")
    figure.suptitle(f"snnTorch, convolutional, batch {growth[0]['batch']}")
    figure.savefig(path, format="png", dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=690, help="what is not begun by then is left out, and said so")
    parser.add_argument("--quick", action="store_true", help="a few small steps in one process: does it run?")
    args = parser.parse_args(argv)
    args.rounds = 1 if args.quick else args.rounds
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    clock = Clock(args.seconds)
    points, batch = (QUICK["growth"], QUICK["batch"]) if args.quick else (GROWTH, BATCH)
    Training(Case("conv_leaky", PLAIN, 2, 2)).step()  # libraries are loaded before anything counts

    rows: list[dict] = []
    growth: list[dict] = []
    asked: list[dict] = []

    def write() -> None:
        asked[:] = verdicts(rows, growth)
        save("unroll_cpu", rows, growth=growth, asked=asked, threads=args.threads, rounds=args.rounds,
             quick=args.quick, allocator={"resident": RETURNS_BLOCKS, "time": "glibc's defaults"})

    try:
        for network, steps in (QUICK["steps"] if args.quick else STEPS).items():
            rows += compared(network, steps, batch, args, clock)
            write()
        growth += growing(points, batch, args, clock, rows)
        write()
    finally:
        torch.set_num_threads(before)

    table("one training step through time", rows, COLUMNS)
    table("against the number of steps", growth, ["T", "method", "peak, MiB", "kept, B", "failed"])
    table("failed", [row for row in rows if "failed" in row], ["network", "T", "method", "failed"])
    table("asked and measured", [{**row, "met": passed(row)} for row in asked],
          ["network", "T", "method", "figure", "asked", "measured", "met"])
    if not any("peak, MiB" in row for row in growth):
        print("written: unroll_cpu.json (no plot: no peaks)")
        return
    try:
        plot(growth, results_folder() / "unroll_cpu.png")
        print("written: unroll_cpu.json and unroll_cpu.png")
    except ImportError as problem:
        print(f"written: unroll_cpu.json (no plot: {problem})")


if __name__ == "__main__":
    main()
