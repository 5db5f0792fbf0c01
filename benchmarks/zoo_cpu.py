"""Published architectures as their repositories write them: memory and time of a training step before and after, and
how far losses and gradients of three steps are apart: each from the same weights, and as training leads on (where a
spike that falls on the other side of the threshold counts).

    python -m benchmarks.zoo_cpu [--threads 2] [--batch 16] [--size 32] [--rounds 5] [--quick]

The nets are those of tests/zoo, most of them code for SpikingJelly 0.0.0.0.12 that runs through sj_memext.compat. Peak
and kept bytes are sums of live tensors (shared_core.memory.measure), the same on every machine.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

import sj_memext
from benchmarks._measure import in_turns, quantiles, save, table
from shared_core.checkpoint import checkpoint_modules

NETS = Path(__file__).resolve().parent.parent / "tests" / "zoo"
sys.path.append(str(NETS))
try:
    from zoo_check import Run, distance, run
    from zoo_families import FAMILIES, Family, T
except ImportError as problem:
    raise SystemExit(f"benchmarks.zoo_cpu trains the networks of {NETS}, which cannot be imported ({problem}); run it "
                     "in a checkout of the repository") from problem

MIB = 1 << 20
NATIVE = "native"
RETROFITS: dict[str, Callable[[nn.Module], object]] = {
    "neuron": partial(sj_memext.retrofit, method="neuron"),
    "compress": partial(sj_memext.retrofit, method="compress"),
    "recompute balanced": partial(sj_memext.retrofit, method="recompute", prefer="balanced"),
    "recompute memory": partial(sj_memext.retrofit, method="recompute", prefer="memory"),
}
# Where neurons are written by hand: whole modules run again.
BLOCKS = {"MS-ResNet, mem_update": ["layers.*"], "integer neurons, mem_update": ["blocks.*"],
          "TET VGG, LIFSpike": ["features.*"]}
WITHOUT_NODES = ("OTTT VGG, activation_based", "OTTT VGG, its own neurons", *BLOCKS)  # none that "neuron" can change
# One flavour of SEW-ResNet's IAND is enough: all flavours are one network (tests/zoo/test_zoo_sew.py).
LEFT_OUT = ("SEW-ResNet IAND, activation_based", "SEW-ResNet IAND, clock_driven")
QUICK = ("SEW-ResNet ADD, cext", "MS-ResNet, mem_update")


def methods_of(name: str) -> dict[str, Callable[[nn.Module], object]]:
    found = dict(RETROFITS)
    if name in WITHOUT_NODES:
        del found["neuron"]
    if name in BLOCKS:
        found["checkpoint blocks"] = partial(checkpoint_modules, modules=BLOCKS[name])
    return found


def measured(family: Family, rounds: int) -> list[dict]:
    """A row per method. Time: steps of all methods in turns."""
    changes = {NATIVE: lambda net: None, **methods_of(family.name)}
    native = run(family)
    runs = {method: run(family, change, follow=native) for method, change in changes.items()}
    trained = {method: run(family, change).losses[-1] for method, change in changes.items()}
    seconds = {}
    if rounds:
        batch = family.batches()[0]
        steps = {method: partial(_step, family, found, batch) for method, found in runs.items()}
        seconds = in_turns(steps, rounds=rounds)
    return [_row(family, method, runs, trained, seconds) for method in runs]


def _step(family: Family, found: Run, batch: tuple) -> None:
    found.net.zero_grad()
    family.step(found.net, *batch)


def _row(family: Family, method: str, runs: dict[str, Run], trained: dict, seconds: dict[str, list[float]]) -> dict:
    ours, theirs = runs[method], runs[NATIVE]
    row = {"family": family.name, "method": method, "T": T, "batch": family.batch, "size": family.size,
           "peak, MiB": ours.peak / MIB, "peak of native's": ours.peak / theirs.peak,
           "kept, MiB": ours.saved / MIB, "kept of native's": ours.saved / theirs.saved,
           "losses apart": max(_apart(a, b) for a, b in zip(ours.losses, theirs.losses)),
           "gradients apart": max(distance(a, b) for a, b in zip(ours.gradients, theirs.gradients)),
           "losses apart, trained": _apart(trained[method], trained[NATIVE]),
           "keys the same": ours.keys == theirs.keys}
    if seconds:
        times = [a / b for a, b in zip(seconds[method], seconds[NATIVE])]
        row |= {"step, ms": {q: v * 1e3 for q, v in quantiles(seconds[method]).items()},
                "time of native's": quantiles(times)["median"]}
    return row


def _apart(loss: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(abs(loss - wanted) / abs(wanted))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=5, help="0: no times")
    parser.add_argument("--quick", action="store_true", help="two families, tiny: does it run?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    batch, size, rounds = (4, 16, 1) if args.quick else (args.batch, args.size, args.rounds)
    rows = []
    for name, family in FAMILIES.items():
        if name in LEFT_OUT or (args.quick and name not in QUICK):
            continue
        print(name, flush=True)
        try:
            rows += measured(replace(family, batch=batch, size=size), rounds)
        except Exception as problem:
            rows.append({"family": name, "method": NATIVE, "failed": f"{type(problem).__name__}: {problem}"})
    path = save("zoo_cpu", rows, threads=args.threads, rounds=rounds, quick=args.quick)
    table(f"one training step, T = {T}, batch {batch}, {size}x{size}", rows, [
        "family", "method", "peak, MiB", "peak of native's", "kept of native's", "time of native's", "losses apart",
        "gradients apart", "losses apart, trained"])
    print("written:", path)


if __name__ == "__main__":
    main()
