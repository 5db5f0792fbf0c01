"""Whole training steps on the CPU, SpikingJelly as it is against all that saves memory: peak, time and bytes kept.

    python -m benchmarks.training_step_cpu [--rounds 7] [--threads 2] [--networks vgg11 ...] [--quick]

Rivals: `benchmarks._training`. Peak: resident memory of two steps in a fresh process, over what was there with network
and batch built and libraries loaded; parameters are in that base, gradients not; the allocator returns large blocks.
Time: forward, loss, backward, SGD; one process per method, all asked in turns, the allocator as a user has it.
"""
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._asked import RIVALS, passed, verdicts
from benchmarks._measure import in_turns, quantiles, ratio, save, table
from benchmarks._networks import SEW_RESNET18, SPIKFORMER, TINY, VGG11, Floor, Network, floor
from benchmarks._resident import RETURNS_BLOCKS, as_a_user_has_it, returning_blocks
from benchmarks._training import NATIVE, distance, rivals
from benchmarks._worker import MIB, Case, Here, Worker

METHODS = rivals(SPIKFORMER)
NETWORKS = (VGG11.at(steps=4), VGG11.at(steps=8), VGG11.at(steps=16), SEW_RESNET18, SPIKFORMER)
MEMORY = ["network", "T", "method", "peak, MiB", "peak of native's", "peak of memopt's", "floor, MiB", "of the floor",
          "kept, B"]
TIME = ["network", "T", "method", "step, ms", "time of native's", "time of memopt's", "gradients unlike native's"]


def memory_columns(start: Callable, case: Case, least: Floor) -> dict:
    """Peak, floor and bytes kept of a case, each measured in a process that does nothing else."""
    with start(case, returning_blocks()) as worker:
        peak, kept = worker.ask("peak"), worker.ask("kept")
    return {"peak, MiB": peak["peak"] / MIB, "peak from": peak["how"], **least.columns(peak["peak"]),
            "peak of tensors, MiB": kept["tensors"] / MIB, "kept, B": kept["saved"] / least.spikes}


def add_times(rows: list[dict], workers: dict[str, Here | Worker], rounds: int, folder: Path) -> None:
    """Adds time and agreement to the rows of one network; a method that fails says why and leaves the others alone."""
    by_method = {row["method"]: row for row in rows}
    wanted: list[torch.Tensor] = []
    for method, worker in list(workers.items()):  # native comes first
        path = folder / "gradients.pt"
        try:
            loss = worker.ask("gradients", str(path))["loss"]
        except Exception as problem:
            by_method[method]["failed"] = str(problem)
            workers.pop(method).close()
            continue
        gradients = torch.load(path)
        wanted = gradients if method == NATIVE else wanted
        by_method[method] |= {"first loss": loss, "gradients unlike native's": distance(gradients, wanted)}
    try:
        seconds = in_turns({method: lambda w=worker: w.ask("step") for method, worker in workers.items()}, rounds)
    except RuntimeError as problem:  # a process ended in the middle: the other networks go on
        for method in workers:
            by_method[method]["failed"] = f"no times, a step of some method failed: {problem}"
        return
    for method, taken in seconds.items():
        spread = quantiles(taken)
        by_method[method] |= {"step, ms": spread["median"] * 1e3,
                              "step, p20-p80": [spread["p20"] * 1e3, spread["p80"] * 1e3]}
        for rival, name in RIVALS.items():
            if rival in seconds:
                by_method[method][f"time of {name}"] = ratio(seconds, method, rival)["median"]


def add_peak_ratios(rows: list[dict]) -> None:
    for rival, name in RIVALS.items():
        base = next((row.get("peak, MiB") for row in rows if row["method"] == rival), None)
        for row in rows:
            if base and "peak, MiB" in row:
                row[f"peak of {name}"] = row["peak, MiB"] / base


def measured(network: Network, methods: tuple[str, ...], threads: int, rounds: int, start: Callable) -> list[dict]:
    """The rows of one network, all methods in one run."""
    steps, batch = network.shape[:2]
    cases = {method: Case(network.name, method, steps, batch, threads) for method in methods}
    least = floor(network)
    rows = []
    for method, case in cases.items():
        print(f"{network.name}, T = {steps}, {method}", flush=True)
        row = {"network": network.name, "T": steps, "batch": batch, "method": method}
        try:
            row |= memory_columns(start, case, least)
        except Exception as problem:
            row["failed"] = str(problem)
        rows.append(row)
    workers = {row["method"]: start(cases[row["method"]], as_a_user_has_it()) for row in rows if "failed" not in row}
    try:
        with tempfile.TemporaryDirectory() as folder:
            add_times(rows, workers, rounds, Path(folder))
    finally:
        for worker in workers.values():
            worker.close()
    add_peak_ratios(rows)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", help=f"of {', '.join(dict.fromkeys(n.name for n in NETWORKS))}")
    parser.add_argument("--methods", nargs="+", help=f"beside native; of {', '.join(METHODS[1:])}")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round, one process: does it run?")
    args = parser.parse_args(argv)
    networks = TINY if args.quick else NETWORKS
    unknown = [name for name in args.networks or () if name not in {n.name for n in networks}]
    unknown += [name for name in args.methods or () if name not in METHODS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; networks: {', '.join(dict.fromkeys(n.name for n in networks))}; "
                     f"methods: {', '.join(METHODS)}")

    name = "training_step_cpu" + ("_part" if args.networks or args.methods else "")
    rows, asked = [], []
    for network in networks:
        if args.networks and network.name not in args.networks:
            continue
        methods = tuple(m for m in rivals(network) if m == NATIVE or m in (args.methods or METHODS))
        start, rounds = (Here, 1) if args.quick else (Worker, args.rounds)
        rows += measured(network, methods, args.threads, rounds, start)
        asked = verdicts(rows)
        save(name, rows, asked=asked, threads=args.threads, rounds=args.rounds, quick=args.quick,
             allocator={"peak": RETURNS_BLOCKS, "time": "glibc's defaults"})
    table("one training step: memory", rows, MEMORY)
    table("one training step: time", rows, TIME)
    table("failed", [row for row in rows if "failed" in row], ["network", "T", "method", "failed"])
    table("asked and measured", [{**row, "met": passed(row)} for row in asked],
          ["network", "T", "method", "figure", "asked", "measured", "met"])
    print(f"written: {name}.json")


if __name__ == "__main__":
    main()
