"""Test accuracy with shared membranes (EfficientLIF-Net, Tables V and VI): human activities, MNIST or CIFAR-10.

    python -m benchmarks.accuracy_sharing --data DIR [--task mnist | cifar10] [--seeds 3] [--threads 1] [--seconds S]

DIR holds motionsense/motionsense.npz, MNIST/raw/ (the four IDX files) or cifar10_jpeg/{train,test}.npz; without --data,
activities are the windows of examples/data. Activities are split 64/16/20 as in the paper, and also by subject; the
split changes with the seed, and is the same for all variants of a seed. --resume goes on from the result file: what it
has is not run again (each row names its commit). Images: --seconds is shared by all runs, and
every variant does the same number of training steps, as many as fit.

Stepping time outermost gives batch norm the statistics of each step, which is another model than batch norm over whole
sequences; so each sharing is compared with the native network of its own kind (`native of its kind`).
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import _sharing_accuracy as runs
from benchmarks._measure import machine, results_folder, save, table
from benchmarks._sharing_data import BY_SUBJECT, RANDOM, Split, activities, images

QUICK = {"activities": runs.Setting(8, (8,), epochs=1, batch=16, most=64),
         "mnist": runs.Setting(2, (8, 8, 8, 8, 8), batch=8, most=80),
         "cifar10": runs.Setting(2, (8, 8, 8, 8, 8), batch=8, most=80)}
# In order of interest: what is not reached in time is left out.
TABLES = {"activities": [(RANDOM, runs.SOFT), (BY_SUBJECT, runs.SOFT), (RANDOM, runs.HARD), (BY_SUBJECT, runs.HARD)],
          "mnist": [(None, runs.SOFT)], "cifar10": [(None, runs.SOFT)]}
KEYS = ("split", "reset", "seed", "variant")
POINT = 0.01
EVALUATION = 1.3  # of a run's time to that of its training steps, at most


def summaries(rows: list[dict]) -> list[dict]:
    """Over seeds: mean, lowest and highest accuracy of each variant, its mean distance to native of the same seeds."""
    done = {(row["split"], row["reset"], row["variant"], row["seed"]): row for row in rows if "accuracy" in row}
    found = []
    for split, reset, variant in dict.fromkeys(key[:3] for key in done):
        mine = {key[3]: row for key, row in done.items() if key[:3] == (split, reset, variant)}

        def to(native: str, mine=mine, split=split, reset=reset) -> float | None:
            off = [row["accuracy"] - done[split, reset, native, seed]["accuracy"] for seed, row in mine.items()
                   if (split, reset, native, seed) in done]
            return statistics.mean(off) if off else None

        values = [row["accuracy"] for row in mine.values()]
        found.append({"split": split, "reset": reset, "variant": variant, "seeds": len(values),
                      "accuracy": statistics.mean(values), "lowest": min(values), "highest": max(values),
                      "to native of its kind": to(runs.VARIANTS[variant][1]), "to multi-step": to(runs.MULTI_STEP),
                      "spike rate": statistics.mean(row["spike rate"] for row in mine.values()),
                      "step, ms": statistics.median(row["step, ms"] for row in mine.values())})
    return found


def verdicts(rows: list[dict]) -> list[dict]:
    """The paper's finding: sharing costs about a point at most."""
    return [{"split": row["split"], "reset": row["reset"], "variant": row["variant"], "figure": "accuracy to native's",
             "asked": f"at least {-POINT:g}", "measured": row["to native of its kind"],
             "met": row["to native of its kind"] >= -POINT}
            for row in summaries(rows) if runs.VARIANTS[row["variant"]][0] and row["to native of its kind"] is not None]


def cases(task: str, seeds: int) -> list[tuple]:
    """(split, reset, seed, variant), variants innermost: what is there when time ends can be compared."""
    return [(split, reset, seed, variant) for split, reset in TABLES[task] for seed in range(seeds)
            for variant in (runs.VARIANTS if task == "activities" else
                            [v for v in runs.VARIANTS if v != runs.MULTI_STEP or _has_kin(v)])]


def _has_kin(native: str) -> bool:
    return any(shared and kin == native for shared, kin in runs.VARIANTS.values())


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    setting = QUICK[args.task] if args.quick else replace(runs.TASKS[args.task], epochs=args.epochs
                                                          or runs.TASKS[args.task].epochs)
    listed = cases(args.task, args.seeds)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    name = "accuracy_sharing" + ("" if args.task == "activities" else f"_{args.task}")
    told = dict(task=args.task, T=setting.steps, widths=list(setting.widths), batch=setting.batch, rate=setting.rate,
                quick=args.quick)
    rows = _done(name, told) if args.resume else []
    have = {tuple(row[key] for key in KEYS) for row in rows}
    commit = machine()["commit"]
    try:
        end = time.monotonic() + args.seconds
        splits: dict[tuple, Split] = {}
        total = None
        for split_name, reset, seed, variant in listed:
            if (split_name, reset, seed, variant) in have:
                continue
            if (split_name, seed) not in splits:
                splits[split_name, seed] = (activities(args.data, split_name, seed, setting.most)
                                            if args.task == "activities" else
                                            images(args.data, args.task, seed, setting.most))
            split = splits[split_name, seed]
            if total is None or args.task == "activities":
                total = _steps(args, setting, split, end - time.monotonic())
            print(f"{split_name or args.task}, {reset} reset, seed {seed}, {variant}", flush=True)
            rows.append({"split": split_name, "reset": reset, "seed": seed, "variant": variant, "commit": commit,
                         **runs.train(args.task, variant, reset, seed, split, setting, total,
                                      lambda: args.task == "activities" and time.monotonic() > end)})
            save(name, rows, summary=summaries(rows), asked=verdicts(rows), **told, threads=args.threads,
                 parts=[len(part) for part in split], **{"time limit, s": args.seconds})
    finally:
        torch.set_num_threads(before)
    columns = ["split", "reset", "variant"]
    table("test accuracy", summaries(rows), [*columns, "seeds", "accuracy", "lowest", "highest",
                                             "to native of its kind", "to multi-step", "spike rate", "step, ms"])
    table("failed", [row for row in rows if "failed" in row], [*columns, "seed", "failed"])
    table("asked and measured", verdicts(rows), [*columns, "figure", "asked", "measured", "met"])
    print(f"written: {name}.json")


def _done(name: str, told: dict) -> list[dict]:
    """What an earlier run with the same settings has measured."""
    path = results_folder() / f"{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    differs = [key for key, value in told.items() if found.get(key) != value]
    if differs:
        raise SystemExit(f"--resume: {path.name} was made with another {', '.join(differs)}")
    return [{"commit": found["machine"]["commit"], **row} for row in found["rows"] if "accuracy" in row]


def _steps(args, setting: runs.Setting, split: Split, seconds: float) -> int:
    """Training steps of a run: of `epochs`, or, of images without them, what fits for every variant alike."""
    per_epoch = max(1, len(split.train) // setting.batch)
    if args.quick:
        return min(per_epoch, 3)
    if setting.epochs is not None:
        return per_epoch * setting.epochs
    each = sum(runs.step_seconds(args.task, split, setting).values()) * args.seeds * EVALUATION
    return max(1, int(seconds / each))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--task", choices=list(TABLES), default="activities")
    parser.add_argument("--seeds", type=int, help="default: 3, for images 1")
    parser.add_argument("--epochs", type=int, help="default: 5 for activities, as many as fit for images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="of all runs; default: 2400, for images 3600")
    parser.add_argument("--resume", action="store_true", help="activities: go on from the result file")
    parser.add_argument("--quick", action="store_true", help="a few small steps, one seed: does it run?")
    args = parser.parse_args(argv)
    pictures = args.task != "activities"
    if pictures and args.data is None:
        parser.error(f"--task {args.task} needs --data DIR")
    if pictures and args.resume:
        parser.error("--resume is for activities; of images, all variants train what fits the time of one run")
    args.seeds = 1 if args.quick else args.seeds or (1 if pictures else 3)
    args.seconds = args.seconds or (3600 if pictures else 2400)
    if min(args.seeds, args.threads, args.epochs or 1) < 1 or args.seconds <= 0:
        parser.error("--seeds, --threads, --epochs and --seconds must be positive")
    return args


if __name__ == "__main__":
    main()
