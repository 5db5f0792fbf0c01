"""What the two tonic examples share: a network on event data, trained in several forms from the same weights."""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import _events
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from shared_core.memory import measure

MIB = 2**20
CAPTION = """peak: highest sum of live tensors over what was there before the step. step: median of the training steps.
accuracy: on digits that were not trained on. 0.10x: a tenth of the first row's."""


@dataclass(frozen=True)
class Form:
    """One way to run a network: build() -> net; rest(net): neurons at rest; scores(net, x_seq [T, N, 2, 17, 17]) ->
    [N, 10], differentiable."""

    build: Callable[[], nn.Module]
    rest: Callable[[nn.Module], None]
    scores: Callable[[nn.Module, Tensor], Tensor]


def main(framework: str, forms: dict[str, Form], description: str, arguments=None) -> list[dict]:
    args = parse(description, arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    where = args.out / "cache" if args.cache == "disk" else None
    train, test = (_events.cached(part, where, count) for part, count in ((True, args.train), (False, args.test)))
    rows = [trained(framework, name, form, train, test, args) for name, form in forms.items()]
    for row in rows:
        for figure in ("peak_mib", "step_s"):
            row[f"{figure.split('_')[0]}_ratio"] = row[figure] / rows[0][figure]
    path = args.out / f"tonic_{framework.lower()}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console = console if console.is_terminal else Console(width=110)  # a log has no width of its own
    console.print(table(framework, rows))
    console.print(f"wrote {path}", highlight=False)
    return rows


def parse(description: str, arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("tonic_out"), help="folder for the JSON and the disk cache")
    parser.add_argument("--cache", choices=("memory", "disk"), default="memory",
                        help="which of tonic's caches holds the frames; default: memory")
    parser.add_argument("--epochs", type=int, default=8, help="times through the digits; default: 8")
    parser.add_argument("--batch", type=int, default=50, help="digits per step; default: 50")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; default: 0")
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, learns nothing")
    args = parser.parse_args(arguments)
    if args.epochs < 1 or not 1 <= args.batch <= 500:
        parser.error(f"--epochs {args.epochs} --batch {args.batch}; at least one epoch, and 1 to 500 digits, needed")
    args.train, args.test = None, None
    if args.quick:
        args.epochs, args.batch = 1, min(args.batch, 10)
        args.train, args.test = 3 * args.batch, 2 * args.batch
    return args


def trained(framework: str, name: str, form: Form, train, test, args) -> dict:
    """Trains a network of this seed in one form. Peak of the second step, seconds of all but the first two."""
    torch.manual_seed(args.seed)
    net = form.build()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    seconds, losses, found = [], [], None
    for i, (x_seq, labels) in enumerate(batches(train, args)):
        def step(x_seq=x_seq, labels=labels):
            form.rest(net)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(form.scores(net, x_seq), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        start = time.perf_counter()
        if i == 1:
            found = measure(step, model=net, optimizer=optimizer, timeline=False)
            losses.append(found.result.item())
        else:
            losses.append(step().item())
            if i:
                seconds.append(time.perf_counter() - start)
    return {"framework": framework, "form": name, "T": len(x_seq), "batch": args.batch, "steps": len(losses),
            "seed": args.seed, "cache": args.cache, "accuracy": accuracy(form, net, test, args.batch),
            "peak_mib": found.peak_bytes / MIB, "saved_mib": found.saved_bytes / MIB,
            "step_s": statistics.median(seconds), "first_loss": losses[0], "last_loss": losses[-1],
            "test_digits": len(test), "threads": torch.get_num_threads()}


def batches(train, args) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(args.epochs):
        yield from _events.loader(train, args.batch, seed=args.seed + epoch)


def accuracy(form: Form, net: nn.Module, test, size: int) -> float:
    net.eval()
    right = 0
    with torch.no_grad():
        for x_seq, labels in _events.loader(test, size):
            form.rest(net)
            right += (form.scores(net, x_seq).argmax(1) == labels).sum().item()
    form.rest(net)
    return right / len(test)


def table(framework: str, rows: list[dict]) -> Table:
    first = rows[0]
    found = Table(title=f"events of moving digits, {framework}, T = {first['T']}, {first['steps']} training steps, "
                        f"batch {first['batch']}, CPU threads {first['threads']}",
                  caption=CAPTION, caption_justify="left", title_justify="left")
    found.add_column("form", no_wrap=True)
    for name in ("accuracy", "peak MiB", "step ms"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(row["form"], f"{row['accuracy']:.1%}", f"{row['peak_mib']:.2f} {row['peak_ratio']:5.2f}x",
                      f"{row['step_s'] * 1e3:.0f} {row['step_ratio']:5.2f}x")
    return found
