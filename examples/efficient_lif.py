"""EfficientLIF-Net on human activities: neurons of different layers and channels share a membrane.

    python examples/efficient_lif.py                # under a minute on two free cores

Trains the paper's six-layer 1-D convolution net with neurons of its own (baseline), and with a membrane shared by all
layers [L], by two groups of channels [C#2], and by both. Prints accuracy on people that it was not trained on, what the
membranes take (`lif_memory`: the paper's accounting; membranes of one window), how many neurons fire, and the peak and
time of a training step; and writes them as JSON.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import _activity
import torch
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from shared_core.memory import lif_memory, measure
from sj_memext import model

SHARINGS = (None, "L", "C#2", "L+C#2")
STEPS, WIDTH, GAIN = 4, 32, 300  # a window: 4 pieces of 32 samples; the paper's net is 128 wide
CAPTION = """accuracy: on subjects that were not trained on. membranes: KiB of one window; backward: what the paper
counts as stored for the backward pass. spikes: share of neurons and steps that fire. peak: of the tensors of a training
step, over what was there before it; step: median of the training steps."""


def pieces(samples: Tensor) -> Tensor:
    """[n, 128, 6] -> [T, n, 6, 128 / T]. Small movements are made large (asinh): they tell sitting from standing."""
    return torch.asinh(GAIN * samples).transpose(1, 2).unflatten(2, (STEPS, -1)).movedim(2, 0) / 3


def build(sharing: str | None, seed: int) -> nn.Module:
    """Every variant of a seed starts from the same weights. Fused neurons throughout."""
    torch.manual_seed(seed)
    net = model.har_net(len(_activity.ACTIVITIES), _activity.CHANNELS, width=WIDTH, sharing=sharing)
    return net if sharing else sj_memext.retrofit(net, "neuron")


def scores(net: nn.Module, windows: _activity.Windows) -> Tensor:
    """[n, 6]: the mean over time. Neurons start at rest."""
    functional.reset_net(net)
    return net(pieces(windows.samples)).mean(0)


def train(sharing: str | None, train_set: _activity.Windows, test_set: _activity.Windows, args) -> dict:
    net = build(sharing, args.seed)
    total = args.epochs * (len(train_set) // args.batch)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    seconds, peak, memory = [], 0, lif_memory(net, pieces(train_set[:2].samples))
    for i, batch in enumerate(_activity.batches(train_set, args.batch, args.epochs, args.seed)):

        def step(batch=batch):
            optimizer.zero_grad()
            cross_entropy(scores(net, batch), batch.labels).backward()
            optimizer.step()

        start = time.perf_counter()
        if i == 1:
            peak = measure(step, model=net, optimizer=optimizer, timeline=False).peak_bytes
        else:
            step()
        if i > 1:
            seconds.append(time.perf_counter() - start)
        schedule.step()
    accuracy, rate = test(net.eval(), test_set)
    return {"sharing": str(sharing or "baseline"), "accuracy": accuracy, "spike_rate": rate,
            "forward_kib": memory.forward_bytes / 1024, "backward_kib": memory.backward_bytes / 1024,
            "peak_mib": peak / 2 ** 20, "step_s": statistics.median(seconds), "steps": total, "seed": args.seed,
            "batch": args.batch, "T": STEPS, "width": WIDTH, "threads": torch.get_num_threads()}


@torch.no_grad()
def test(net: nn.Module, windows: _activity.Windows) -> tuple[float, float]:
    """Share of windows that are recognised, and of neurons and steps that fire."""
    fired = []
    hooks = [m.register_forward_hook(lambda m, args, out: fired.append(out.mean().item()))
             for m in net.modules() if isinstance(m, neuron.BaseNode)]
    right = (scores(net, windows).argmax(1) == windows.labels).float().mean().item()
    functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return right, statistics.mean(fired)


def table(rows: list[dict]) -> Table:
    found = Table(title=f"human activities, T = {STEPS}, {rows[0]['steps']} training steps, batch {rows[0]['batch']}, "
                        f"CPU threads {rows[0]['threads']}",
                  caption=CAPTION, caption_justify="left", title_justify="left")
    found.add_column("membranes shared", no_wrap=True)
    for name in ("accuracy", "forward", "backward", "spikes", "peak MiB", "step ms"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(row["sharing"], f"{row['accuracy']:.1%}", f"{row['forward_kib']:.1f}",
                      f"{row['backward_kib']:.1f}", f"{row['spike_rate']:.1%}", f"{row['peak_mib']:.1f}",
                      f"{row['step_s'] * 1e3:.0f}")
    return found


def main(arguments=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("efficient_lif_out"), help="folder for efficient_lif.json")
    parser.add_argument("--epochs", type=int, default=3, help="times through the windows; default: 3")
    parser.add_argument("--batch", type=int, default=64, help="windows per step; default: 64")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; default: 0")
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, learns nothing")
    args = parser.parse_args(arguments)
    if args.epochs < 1 or not 1 <= args.batch <= 512:
        parser.error(f"--epochs {args.epochs} --batch {args.batch}; at least one epoch, and 1 to 512 windows, needed")
    train_set, test_set = _activity.load()
    if args.quick:
        args.epochs, args.batch = 1, min(args.batch, 8)
        train_set, test_set = train_set[:4 * args.batch], test_set[:32]
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for sharing in SHARINGS:
        print(f"training, {sharing or 'baseline'}", flush=True)
        rows.append(train(sharing, train_set, test_set, args))
    (args.out / "efficient_lif.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a log has no width of its own
    console.print(table(rows))
    console.print(f"wrote efficient_lif.json to {args.out}", highlight=False)
    return rows


if __name__ == "__main__":
    main()
