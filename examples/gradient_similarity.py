"""How much of BPTT's gradient is spatial? Cosine similarities while a SpikingJelly network learns MNIST digits.

    python examples/gradient_similarity.py --out similarity_out        # about a minute on two cores

Left: BPTT and the spatial gradient (as SLTT, Fig. 3), a curve per layer. Middle and right: BPTT and the gradient in
which only the last neurons of each stage keep (case 1) or leave out (case 2) their temporal part (as T-RevSNN, Fig. 2).
Writes similarity.json and similarity.png.
"""
from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import _data
import _similarity
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

TAUS = (1.1, 2.0)


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("similarity_out"), help="folder for the JSON and the picture")
    parser.add_argument("--steps", type=int, default=48, help="training steps; default: 48")
    parser.add_argument("--every", type=int, default=6, help="steps between two comparisons; default: 6")
    parser.add_argument("--T", type=int, default=6, help="time steps; default: 6")
    parser.add_argument("--batch", type=int, default=32, help="digits per step; default: 32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, learns nothing")
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps, args.every, args.T, args.batch = 3, 2, 3, 4
    for name in ("steps", "every", "T", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    return args


def main(arguments=None) -> list[dict]:
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    train, _ = _data.load()
    batches = _data.batches(train, args.batch, args.steps, args.seed)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a log has no width of its own
    rows: list[dict] = []
    with Progress(TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console) as progress:
        for tau in TAUS:
            bar = progress.add_task(f"tau {tau}", total=args.steps)
            rows += similarities(tau, batches, args, lambda bar=bar: progress.advance(bar))
    (args.out / "similarity.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw(rows, args.out / "similarity.png")
    console.print(table(rows))
    console.print(f"wrote similarity.json and similarity.png to {args.out}", highlight=False)
    return rows


def static(images: Tensor, steps: int) -> Tensor:
    """The same digit at every time step."""
    return images.expand(steps, *images.shape)


def similarities(tau: float, batches: list[_data.Digits], args, advance) -> list[dict]:
    """Trains with BPTT; a row for every `--every` steps, from the weights and the batch of that step."""
    torch.manual_seed(args.seed)
    net = _similarity.build(tau)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    found = []
    for i, (images, labels) in enumerate(batches):
        x = static(images, args.T)
        if i % args.every == 0 or i == len(batches) - 1:
            row = _similarity.compared(_similarity.gradients(net, x, labels))
            found.append({"tau": tau, "T": args.T, "step": i, **row})
        optimizer.zero_grad()
        loss = _similarity.bptt(net, x, labels)
        optimizer.step()
        if found[-1]["step"] == i:
            found[-1]["loss"] = loss
        advance()
    return found


def table(rows: list[dict]) -> Table:
    """Means over the run, and over layers."""
    names = ("spatial", "case 1", "case 2", "case 1 of means", "case 2 of means")
    found = Table(title=f"cosine similarity with BPTT's gradient, T = {rows[0]['T']}, mean over training",
                  title_justify="left")
    found.add_column("tau")
    for name in (*names, "last loss"):
        found.add_column(name, justify="right")
    for tau in TAUS:
        mine = [row for row in rows if row["tau"] == tau]
        flat = {name: [v for row in mine for v in (row[name] if isinstance(row[name], list) else [row[name]])]
                for name in names}
        found.add_row(str(tau), *(f"{statistics.mean(flat[name]):.3f}" for name in names), f"{mine[-1]['loss']:.3f}")
    return found


def draw(rows: list[dict], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    left, *cases = figure.subplots(1, 3, sharey=True)
    layers = len(rows[0]["spatial"])
    for tau, style in zip(TAUS, ("-", "--")):
        mine = [row for row in rows if row["tau"] == tau]
        steps = [row["step"] for row in mine]
        for i in range(layers):
            left.plot(steps, [row["spatial"][i] for row in mine], style, linewidth=1,
                      color=colormaps["viridis"](i / layers), label=f"layer {i + 1}" if style == "-" else None)
        left.plot([], [], style, color="grey", label=f"tau {tau}")
        for axes, name in zip(cases, ("case 1", "case 2")):
            axes.plot(steps, [row[f"{name} of means"] for row in mine], style, color="#1f6fb4",
                      label=f"of the layers' means (Eq. 12), tau {tau}")
            axes.plot(steps, [statistics.mean(row[name]) for row in mine], style, color="#d1632a",
                      label=f"of the weights, mean of layers, tau {tau}")
    left.set_title("spatial gradient (SLTT, Fig. 3)", fontsize=10)
    for axes, text in zip(cases, ("case 1: only the last neurons of each stage\nkeep the temporal gradient",
                                  "case 2: only the last neurons of each stage\nleave out the temporal gradient")):
        axes.set_title(text, fontsize=10)
    for axes in (left, *cases):
        axes.set_xlabel("training step")
        axes.grid(linewidth=0.4, alpha=0.6)
        axes.legend(fontsize=7, frameon=False)
    left.set_ylabel("cosine similarity with BPTT's gradient")
    figure.savefig(path, format="png", dpi=130)


if __name__ == "__main__":
    main()
