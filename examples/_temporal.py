"""What the two temporal examples share: training on human activities step by step, one method after the other."""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import _activity
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from shared_core.memory import measure

WIDTH, HOP = 16, 2  # a frame: 0.32 s of all channels; the next one 0.04 s later
MIB = 2**20
CAPTION = """peak: highest sum of live tensors over what was there before the step. step: median of the training steps.
accuracy: on subjects that were not trained on. 0.10x: a tenth of plain's."""


@dataclass(frozen=True)
class Task:
    """A framework's network and the ways to train it.

    build() -> net.  rest(net): neurons at rest.  scores(net, x_seq [T, N, 96]) -> [T, N, 6].
    methods: {name: (net, x_seq, labels) -> loss}, each of which leaves gradients; the first is plain BPTT.
    """

    framework: str
    build: Callable[[], nn.Module]
    rest: Callable[[nn.Module], None]
    scores: Callable[[nn.Module, Tensor], Tensor]
    methods: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]


def main(task: Task, description: str, arguments=None) -> list[dict]:
    args = parse(task, description, arguments)
    train, test = _activity.load()
    if args.quick:
        train, test = train[:3 * args.batch], test[:64]
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a log has no width of its own
    rows, growth = [], []
    total = args.epochs * (len(train) // args.batch)
    with Progress(TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console) as progress:
        for method in task.methods:
            bar = progress.add_task(f"training, {method}", total=total)
            rows.append(trained(task, method, train, test, args, lambda bar=bar: progress.advance(bar)))
        bar = progress.add_task("peak against T", total=len(args.lengths) * len(task.methods))
        for steps in args.lengths:
            for method in task.methods:
                growth.append({"T": steps, "method": method, "batch": args.small,
                               "peak_mib": peak(task, method, train, steps, args.small)})
                progress.advance(bar)
    for row in rows:
        for figure in ("peak_mib", "step_s"):
            row[f"{figure.split('_')[0]}_ratio"] = row[figure] / rows[0][figure]
    name = f"temporal_{task.framework.lower()}"
    (args.out / f"{name}.json").write_text(json.dumps({"rows": rows, "growth": growth}, indent=2) + "\n",
                                           encoding="utf-8")
    draw(task, growth, args.small, args.out / f"{name}.png")
    console.print(table(task, rows))
    console.print(f"wrote {name}.json and {name}.png to {args.out}", highlight=False)
    return rows


def parse(task: Task, description: str, arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("temporal_out"), help="folder for the JSON and the picture")
    parser.add_argument("--epochs", type=int, default=4, help="times through the windows; default: 4")
    parser.add_argument("--batch", type=int, default=128, help="windows per step; default: 128")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; default: 0")
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, learns nothing")
    args = parser.parse_args(arguments)
    if args.epochs < 1 or not 1 <= args.batch <= 1024:
        parser.error(f"--epochs {args.epochs} --batch {args.batch}; at least one epoch, and 1 to 1024 windows, needed")
    args.lengths = (25, 50, 100, 200, 400)  # of the picture
    if args.quick:
        args.epochs, args.batch, args.lengths = 1, min(args.batch, 8), (8, 64)
    args.small = min(args.batch, 32)
    return args


def trained(task: Task, method: str, train: _activity.Windows, test: _activity.Windows, args, advance) -> dict:
    """Trains a network of this seed with one method. Peak of the second step, seconds of all but the first two."""
    torch.manual_seed(args.seed)
    net = task.build()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * (len(train) // args.batch))
    seconds, losses, found = [], [], None
    for i, batch in enumerate(_activity.batches(train, args.batch, args.epochs, args.seed)):
        x = _activity.frames(batch.samples, WIDTH, HOP)

        def step(x=x, labels=batch.labels):
            task.rest(net)
            optimizer.zero_grad()
            loss = task.methods[method](net, x, labels)
            optimizer.step()
            return loss

        start = time.perf_counter()
        if i == 1:
            found = measure(step, model=net, optimizer=optimizer, timeline=False)
            losses.append(found.result.item())
        else:
            losses.append(step().item())
        if i > 1:
            seconds.append(time.perf_counter() - start)
        schedule.step()
        advance()
    task.rest(net)
    with torch.no_grad():
        scores = task.scores(net, _activity.frames(test.samples, WIDTH, HOP)).mean(0)
    task.rest(net)
    return {"framework": task.framework, "method": method, "T": len(x), "batch": args.batch, "steps": len(losses),
            "seed": args.seed, "accuracy": (scores.argmax(1) == test.labels).float().mean().item(),
            "peak_mib": found.peak_bytes / MIB, "saved_mib": found.saved_bytes / MIB,
            "step_s": statistics.median(seconds), "first_loss": losses[0], "last_loss": losses[-1],
            "test_windows": len(test), "threads": torch.get_num_threads()}


def peak(task: Task, method: str, windows: _activity.Windows, steps: int, batch: int) -> float:
    """MiB of a step over `steps` time steps; the windows come again where they are too short."""
    torch.manual_seed(0)
    net, part = task.build(), windows[:batch]
    x = _activity.frames(part.samples, WIDTH, HOP)
    x = x.repeat(-(-steps // len(x)), 1, 1)[:steps].clone()
    task.rest(net)
    return measure(lambda: task.methods[method](net, x, part.labels), timeline=False).peak_bytes / MIB


def table(task: Task, rows: list[dict]) -> Table:
    first = rows[0]
    found = Table(title=f"human activities, {task.framework}, T = {first['T']}, {first['steps']} training steps, "
                        f"batch {first['batch']}, CPU threads {first['threads']}",
                  caption=CAPTION, caption_justify="left", title_justify="left")
    found.add_column("method", no_wrap=True)
    for name in ("accuracy", "peak MiB", "step ms"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(row["method"], f"{row['accuracy']:.1%}", f"{row['peak_mib']:.2f} {row['peak_ratio']:5.2f}x",
                      f"{row['step_s'] * 1e3:.0f} {row['step_ratio']:5.2f}x")
    return found


def draw(task: Task, growth: list[dict], batch: int, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    axes = figure.subplots()
    for method, color in zip(task.methods, ("#8c8c8c", "#1f6fb4", "#d1632a")):
        line = [row for row in growth if row["method"] == method]
        axes.plot([row["T"] for row in line], [row["peak_mib"] for row in line], marker="o", color=color, label=method)
    axes.set(xlabel="time steps", ylabel="peak of live tensors over base, MiB", xscale="log", yscale="log")
    lengths = sorted({row["T"] for row in growth})
    axes.set_xticks(lengths, [str(steps) for steps in lengths])
    axes.minorticks_off()
    axes.set_title(f"{task.framework}: memory of a training step, batch {batch}", fontsize=10)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=130)
