"""Early exit (DT-SNN) on MNIST: steps, accuracy and energy, from the spikes of trained networks.

    python -m benchmarks.early_exit --data DIR [--steps 4 8] [--seeds 3] [--epochs 1] [--threads 1]

DIR holds MNIST/raw/ (the four IDX files). A network of two convolutions and two linear layers is trained for each seed
and number of steps T, its threshold is calibrated on a validation part (a tenth of the training images) to lose at most
--drop there, and the test images are then classified with and without early exit. The loss is the cross entropy of the
mean output of all T steps (`last`), or the mean of those of the first 1, 2, ..., T steps (`every`).

Energies are those of shared_core.hardware's models for one test image in the mean: each step at which images stop is
counted with the spike rates of those that stop there. EDP is E[energy * latency] over images.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from benchmarks._measure import machine, results_folder, save, table
from benchmarks._sharing_data import Part, Split, images
from shared_core.hardware import ExitReport, early_exit

LOSSES = ("last", "every")
SAVED, LOST = 0.30, 0.005  # asked: of the steps, at least; of accuracy, at most


def build(seed: int) -> nn.Module:
    """[T, N, 1, 28, 28] -> [T, N, 10]; the head has no neuron, so its outputs are any numbers."""
    def lif() -> nn.Module:
        return neuron.LIFNode(tau=2.0, v_reset=None, surrogate_function=surrogate.ATan(), detach_reset=True)

    torch.manual_seed(seed)
    net = nn.Sequential(layer.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(16), lif(),
                        layer.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(32), lif(),
                        layer.Flatten(), layer.Linear(32 * 49, 128, bias=False), layer.BatchNorm1d(128), lif(),
                        layer.Linear(128, 10))
    functional.set_step_mode(net, "m")
    return sj_memext.retrofit(net, "neuron")


def shown(x: Tensor, steps: int) -> Tensor:
    """uint8 [N, 1, 28, 28] -> [T, N, 1, 28, 28] in 0..1: the image itself in every step (direct coding)."""
    return (x.float() / 255).expand(steps, *x.shape)


def train(net: nn.Module, part: Part, steps: int, loss: str, epochs: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    total = epochs * (len(part) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total))
    counts = torch.arange(1, steps + 1).view(-1, 1, 1)
    for _ in range(epochs):
        for index in torch.randperm(len(part), generator=generator).split(batch):
            if len(index) < batch:
                continue
            x, y = part[index]
            out = net(shown(x, steps))
            means = out.cumsum(0) / counts if loss == "every" else out.mean(0, keepdim=True)
            optimizer.zero_grad()
            cross_entropy(means.flatten(0, 1), y.repeat(len(means))).backward()
            optimizer.step()
            schedule.step()
            functional.reset_net(net)


def loader(part: Part, steps: int, size: int = 500):
    for at in range(0, len(part), size):
        x, y = part[at:at + size]
        yield shown(x, steps), y


def one_run(split: Split, seed: int, steps: int, loss: str, args) -> dict:
    start = time.perf_counter()
    net = build(seed)
    train(net, split.train, steps, loss, args.epochs, args.batch, seed)
    trained = time.perf_counter() - start
    stopped = early_exit(net)
    found = stopped.calibrate(loader(split.validation, steps), drop=args.drop)
    report = stopped.report(loader(split.test, steps), samples=args.samples)
    return {"T": steps, "loss": loss, "seed": seed, "threshold": report.threshold,
            "accuracy, all steps": report.full_accuracy, "accuracy": report.accuracy,
            "lost": report.full_accuracy - report.accuracy, "mean steps": report.mean_steps,
            "steps saved": 1 - report.mean_steps / steps, "exits": list(report.exits),
            "validation": {"accuracy, all steps": found.full_accuracy, "accuracy": found.accuracy,
                           "mean steps": found.mean_steps, "images": found.samples},
            "spike rates": {row.name: row.input_rate for row in report.full.table if row.counted},
            "energy": energies(report), "training, s": trained, "seconds": time.perf_counter() - start}


def energies(report: ExitReport) -> dict[str, dict[str, float | None]]:
    return {name: {"model": cost.model, "all steps, nJ": cost.full_nj, "early exit, nJ": cost.energy_nj,
                   "of all steps": cost.energy_nj / cost.full_nj,
                   "latency of all steps": _over(cost.latency_ns, cost.full_latency_ns),
                   "EDP of all steps": _over(cost.edp_nj_ns, cost.full_edp_nj_ns),
                   "product of means of all steps": _over(cost.mean_product_nj_ns, cost.full_edp_nj_ns)}
            for name, cost in report.energy.items()}


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def summaries(rows: list[dict]) -> list[dict]:
    """Means over seeds."""
    found = []
    for T, loss in dict.fromkeys((row["T"], row["loss"]) for row in rows):
        mine = [row for row in rows if (row["T"], row["loss"]) == (T, loss)]
        mean = {key: statistics.mean(row[key] for row in mine) for key in
                ("accuracy, all steps", "accuracy", "lost", "mean steps", "steps saved")}
        energy = {name: {key: None if value is None else statistics.mean(row["energy"][name][key] for row in mine)
                         for key, value in parts.items() if key != "model"}
                  for name, parts in mine[0]["energy"].items()}
        found.append({"T": T, "loss": loss, "seeds": len(mine), **mean, "energy": energy})
    return found


def verdicts(rows: list[dict]) -> list[dict]:
    """For every run: both at once are asked."""
    return [{"T": row["T"], "loss": row["loss"], "seed": row["seed"], "figure": figure, "asked": asked,
             "measured": row[figure], "met": met(row[figure])} for row in rows for figure, asked, met in
            (("steps saved", f"at least {SAVED:.0%}", lambda v: v >= SAVED),
             ("lost", f"at most {LOST * 100:g} points", lambda v: v <= LOST))]


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    told = dict(epochs=args.epochs, batch=args.batch, drop=args.drop, samples=args.samples, threads=args.threads,
                quick=args.quick)
    rows = _done(told) if args.resume else []
    have = {(row["T"], row["loss"], row["seed"]) for row in rows}
    commit = machine()["commit"]
    try:
        for steps in args.steps:
            for loss in args.losses:
                for seed in range(args.seeds):
                    if (steps, loss, seed) in have:
                        continue
                    split = images(args.data, "mnist", seed, args.most)
                    print(f"T={steps}, loss {loss}, seed {seed}", flush=True)
                    rows.append({**one_run(split, seed, steps, loss, args), "commit": commit})
                    rows.sort(key=lambda row: (row["T"], row["loss"], row["seed"]))
                    save("early_exit", rows, summary=summaries(rows), asked=verdicts(rows), **told,
                         parts=[len(part) for part in split])
    finally:
        torch.set_num_threads(before)
    table("early exit on MNIST", rows, ["T", "loss", "seed", "accuracy, all steps", "accuracy", "lost", "mean steps",
                                        "steps saved"])
    table("one image, mean over seeds", [{"T": row["T"], "loss": row["loss"], "model": rows[0]["energy"][name]["model"],
                                          **energy} for row in summaries(rows)
                                         for name, energy in row["energy"].items()],
          ["T", "loss", "model", "all steps, nJ", "early exit, nJ", "of all steps", "EDP of all steps",
           "product of means of all steps"])
    table("asked and measured", verdicts(rows), ["T", "loss", "seed", "figure", "asked", "measured", "met"])
    print("written: early_exit.json")


def _done(told: dict) -> list[dict]:
    """What an earlier run with the same settings has measured."""
    path = results_folder() / "early_exit.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    differs = [key for key, value in told.items() if found.get(key) != value]
    if differs:
        raise SystemExit(f"--resume: {path.name} was made with another {', '.join(differs)}")
    return found["rows"]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="folder with MNIST/raw")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], metavar="T")
    parser.add_argument("--losses", choices=LOSSES, nargs="+", default=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--drop", type=float, default=0.001, help="of accuracy, at most, on the validation part")
    parser.add_argument("--samples", type=int, default=500, help="images of each kind in which spikes are counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the result file")
    parser.add_argument("--quick", action="store_true", help="a few hundred images, one seed: does it run?")
    args = parser.parse_args(argv)
    if min(*args.steps, args.seeds, args.epochs, args.batch, args.samples, args.threads) < 1:
        parser.error("numbers must be positive")
    args.most = None
    if args.quick:
        args.most, args.seeds, args.epochs, args.batch, args.samples = 500, 1, 1, 32, 20
    return args


if __name__ == "__main__":
    main()
