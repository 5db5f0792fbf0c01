"""Test accuracy on human activities, by subject: BPTT, the same perturbed by one ulp, reverse, SLTT and SLTT-K.

    python -m benchmarks.accuracy_unroll [--seeds 3] [--epochs 8] [--threads 2] [--seconds 570] [--quick]

Training is chaotic: BPTT against itself, with every initial weight moved to the next float, ends elsewhere. That
distance is the band in which an exact method lies. SLTT and SLTT-K (a quarter of the steps) leave gradients out.
"""
from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks import _unroll_accuracy as runs
from benchmarks._asked import passed
from benchmarks._measure import save, table

QUICK = runs.Setting(epochs=1, size=16, windows=32, test=32)
POINT = 0.01


def summaries(rows: list[dict]) -> list[dict]:
    """Over seeds: mean, lowest and highest accuracy of each method, and the mean difference to BPTT's."""
    base = {row["seed"]: row["accuracy"] for row in rows if row["method"] == runs.BPTT and "accuracy" in row}
    found = []
    for method in runs.METHODS:
        mine = {row["seed"]: row for row in rows if row["method"] == method and "accuracy" in row}
        if not mine:
            continue
        values = [row["accuracy"] for row in mine.values()]
        off = [row["accuracy"] - base[seed] for seed, row in mine.items() if seed in base]
        found.append({"method": method, "seeds": len(values), "accuracy": statistics.mean(values),
                      "lowest": min(values), "highest": max(values), "to BPTT": statistics.mean(off) if off else None,
                      "weights apart, highest": max(row["weights unlike BPTT's"][-1] for row in mine.values()),
                      "seconds": statistics.mean(row["seconds"] for row in mine.values())})
    return found


def verdicts(rows: list[dict]) -> list[dict]:
    """reverse inside the band of BPTT and BPTT perturbed; SLTT and SLTT-K about a point below BPTT at most."""
    found = {row["method"]: row for row in summaries(rows)}
    exact = [found[m] for m in (runs.BPTT, runs.PERTURBED) if m in found]
    asked = []

    def add(method: str, figure: str, wanted: str, measured: float | None, met: bool | None) -> None:
        asked.append({"method": method, "figure": figure, "asked": wanted, "measured": measured, "met": met})

    reverse, off = found.get(runs.REVERSE), found.get(runs.PERTURBED)
    if reverse and off:
        low, high = min(r["lowest"] for r in exact), max(r["highest"] for r in exact)
        mean = reverse["accuracy"]
        add(runs.REVERSE, "mean accuracy", f"{low:.4f} to {high:.4f}", mean, low <= mean <= high)
        apart, band = reverse["weights apart, highest"], off["weights apart, highest"]
        add(runs.REVERSE, "weights apart from BPTT's", f"at most {band:.2e}", apart, apart <= band)
    for method in (runs.SLTT, runs.SLTTK):
        if method in found and found[method]["to BPTT"] is not None:
            # Only SLTT was asked for; SLTT-K is shown beside it.
            below = found[method]["to BPTT"]
            add(method, "accuracy to BPTT's", f"at least {-POINT:g}", below, below >= -POINT)
    return asked


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=runs.Setting.epochs)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=570, help="runs not ended by then are left out, and said so")
    parser.add_argument("--quick", action="store_true", help="a few small steps, one seed: does it run?")
    args = parser.parse_args(argv)
    setting = QUICK if args.quick else runs.Setting(epochs=args.epochs)
    seeds = range(1 if args.quick else args.seeds)
    train, test = runs._activity.load()
    data = train[:setting.windows], test[:setting.test]
    end = time.monotonic() + args.seconds
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    rows, references = [], {}
    try:
        for seed in seeds:
            for method in runs.METHODS:
                print(f"seed {seed}, {method}", flush=True)
                rows.append({"method": method, "seed": seed,
                             **runs.train(method, seed, data, setting, lambda: time.monotonic() > end, references)})
                if "failed" in rows[-1]:
                    break  # without BPTT's weights nothing can be compared
            save("accuracy_unroll", rows, summary=summaries(rows), asked=verdicts(rows), T=runs.STEPS,
                 threads=args.threads, epochs=setting.epochs, batch=setting.size, rate=setting.rate, beta=runs.BETA,
                 windows=[len(part) for part in data], quick=args.quick)
    finally:
        torch.set_num_threads(before)
    table("test accuracy on subjects not trained on", summaries(rows),
          ["method", "seeds", "accuracy", "lowest", "highest", "to BPTT", "weights apart, highest", "seconds"])
    table("failed", [row for row in rows if "failed" in row], ["method", "seed", "failed"])
    table("asked and measured", [{**row, "met": passed(row)} for row in verdicts(rows)],
          ["method", "figure", "asked", "measured", "met"])
    print("written: accuracy_unroll.json")


if __name__ == "__main__":
    main()
