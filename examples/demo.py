"""Trains two spiking networks on MNIST digits, with the framework's own neurons and retrofitted, and compares.

    python examples/demo.py --out demo_out                   # what `make demo` runs: a few minutes on two cores
    python examples/demo.py --frameworks snntorch --steps 60

Prints one table, and writes demo.json (the table's rows and more) and memory.png (memory over one step) to --out.
"""
from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import _data
import _nets
import _plot
import _train
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

METHODS = (_train.NATIVE, "neuron")
MIB = 2**20
CAPTION = """peak: highest sum of live tensors over what was there before the step. saved: kept for the backward.
step: median of the timed steps. spikes identical: every spike of every layer on a real batch, from
the same weights, before, halfway and after training (native: against a second run of itself).
firing: share of neurons and time steps that fire, after training. 2.00x: twice native's figure."""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for demo.json and memory.png")
    parser.add_argument("--frameworks", default=",".join(_nets.FRAMEWORKS), help="comma-separated; default: all")
    parser.add_argument("--steps", type=int, help="training steps per network; default: --epochs")
    parser.add_argument("--epochs", type=int, default=1, help="times through the training digits; default: 1")
    parser.add_argument("--batch", type=int, default=64, help="digits per step; default: 64")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order of the digits; default: 0")
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, learns nothing")
    args = parser.parse_args(arguments)
    args.frameworks = [name.strip() for name in args.frameworks.split(",") if name.strip()]
    unknown = sorted(set(args.frameworks) - set(_nets.FRAMEWORKS))
    if unknown or not args.frameworks:
        parser.error(f"--frameworks: unknown or empty: {', '.join(unknown) or '(empty)'}; allowed: "
                     f"{', '.join(_nets.FRAMEWORKS)}")
    args.frameworks = list(dict.fromkeys(args.frameworks))
    if args.quick:
        args.batch, args.steps = min(args.batch, 16), args.steps or 8
    if args.steps is not None and args.steps < _train.FEWEST_STEPS:
        parser.error(f"--steps is {args.steps}; at least {_train.FEWEST_STEPS} are needed to measure something")
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}; at least 1 is needed")
    return args


def main(arguments=None) -> list[dict]:
    args = parse(arguments)
    tasks = [_nets.task(name) for name in args.frameworks]
    train, test = _data.load()
    test = test[:100] if args.quick else test
    steps = args.steps or args.epochs * (len(train) // args.batch)
    batches = _data.batches(train, args.batch, steps, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log has no width of its own
    rows, reports = [], {}
    with Progress(TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console) as progress:
        bars = {task.framework: progress.add_task(f"training {task.framework}", total=steps * len(METHODS))
                for task in tasks}
        for task in tasks:
            bar = bars[task.framework]
            progress.reset(bar)  # its clock starts now
            runs = _train.train(task, METHODS, batches, test, args.seed, lambda bar=bar: progress.advance(bar))
            rows += [row(task, run, runs[0], args, steps, len(test)) for run in runs]
            reports[task.framework] = {run.method: run.memory for run in runs}

    captions = {task.framework: f"{task.framework}, T = {task.time_steps}, batch {args.batch}" for task in tasks}
    _plot.draw(reports, captions, args.out / "memory.png")
    (args.out / "demo.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console.print(table(rows))
    console.print(f"wrote {args.out / 'demo.json'} and {args.out / 'memory.png'}", highlight=False)
    return rows


def row(task: _nets.Task, run: _train.Run, native: _train.Run, args, steps: int, test_digits: int) -> dict:
    """One method of one framework. Sizes in MiB over what was allocated before the step, times in seconds."""
    memory, base, last = run.memory, native.memory, run.checks[-1]
    return {
        "framework": task.framework,
        "method": run.method,
        "peak_mib": memory.peak_bytes / MIB,
        "saved_mib": memory.saved_bytes / MIB,
        "step_s": run.step_s,
        "accuracy": run.accuracy,
        "spikes_identical": all(check["spikes_identical"] for check in run.checks),
        "firing_rate": last["firing_rate"],
        "peak_ratio": memory.peak_bytes / base.peak_bytes,
        "saved_ratio": memory.saved_bytes / base.saved_bytes,
        "step_ratio": run.step_s / native.step_s,
        "step_s_p20_p80": quantiles(run.seconds),
        "step_cpu_s": sorted(run.cpu_seconds)[len(run.cpu_seconds) // 2],
        "gradient_difference": max(check["gradient_difference"] for check in run.checks),
        "checks": run.checks,
        "T": task.time_steps,
        "batch": args.batch,
        "steps": steps,
        "seed": args.seed,
        "test_digits": test_digits,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(),
                     **{name: version_of(name) for name in ("memext", "torch", task.framework)}},
    }


def quantiles(values) -> list[float]:
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.8], dtype=torch.float64))
    return found.tolist()


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a source checkout on the path
        return None


def table(rows: list[dict]) -> Table:
    """The rows, each figure also as a multiple of native's."""
    first = rows[0]
    found = Table(
        title=f"MNIST, {first['steps']} training steps, batch {first['batch']}, CPU threads {first['threads']}",
        caption=CAPTION, caption_justify="left", title_justify="left")
    for name in ("framework", "method"):
        found.add_column(name, no_wrap=True)
    for name in ("peak MiB", "saved MiB", "step ms", "accuracy", "spikes identical", "firing"):
        found.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        ends_block = number + 1 == len(rows) or rows[number + 1]["framework"] != row["framework"]
        found.add_row(
            f"{row['framework']} (T={row['T']})" if row["method"] == _train.NATIVE else "", row["method"],
            beside(f"{row['peak_mib']:.1f}", row["peak_ratio"]), beside(f"{row['saved_mib']:.1f}", row["saved_ratio"]),
            beside(f"{row['step_s'] * 1e3:.0f}", row["step_ratio"]), f"{row['accuracy']:.2%}",
            "yes" if row["spikes_identical"] else "[bold red]NO", f"{row['firing_rate']:.1%}", end_section=ends_block)
    return found


def beside(value: str, ratio: float) -> str:
    color = "green" if ratio < 0.98 else "red" if ratio > 1.02 else "dim"
    return f"{value} [{color}]{ratio:5.2f}x[/]"


if __name__ == "__main__":
    main()
