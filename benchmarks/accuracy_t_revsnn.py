"""Test accuracy of small T-RevSNNs on real data: digits, CIFAR-10 (stored as JPEG), and events of digits.

    python -m benchmarks.accuracy_t_revsnn --data DIR --task mnist|cifar10|events [--epochs E] [--seconds S] [--quick]

One seed, one run, through the reversible backward. The network sees every image once encoded, and events step by step;
the loss is that of the last step. Result file: accuracy_t_revsnn_TASK.json.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks._measure import save, table
from benchmarks._t_revsnn import TASKS, Split, Task, batches
from sj_memext.model import t_revsnn

POINTS, SOME = 10, 1000  # of the curve; test samples at each but the last


@torch.no_grad()
def accuracy(net: nn.Module, task: Task, split: Split, some: int | None = None) -> float:
    net.eval()
    right = 0
    order = torch.arange(len(split))[:some]
    for at in order.split(250):
        x, labels = task.batch(split, at)
        right += (net(x).argmax(1) == labels).sum().item()
    net.train()
    return right / len(order)


@torch.no_grad()
def firing(net: nn.Module, task: Task, split: Split) -> list[float]:
    """Share of the turned-on neurons of each stage that fire in the last column."""
    net.eval()
    states = net.columns(net.encode(task.batch(split, torch.arange(min(250, len(split))))[0]))
    net.train()
    return [net.columns.neuron.spike(v).mean().item() for v in states]


def decays(net: nn.Module) -> dict[str, float]:
    """Of the columns after the first, which has no state to decay."""
    found = torch.cat([d.detach() for row in net.columns.clamped()[1:] for d in row])
    return {"least": found.abs().min().item(), "median": found.median().item(), "most": found.abs().max().item()}


def train(net: nn.Module, task: Task, data: tuple[Split, Split], args) -> dict:
    train_set, test_set = data
    steps = int(args.epochs * len(train_set)) // args.batch
    optimizer = torch.optim.AdamW(net.parameters(), args.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, max(2, steps), pct_start=0.15)
    curve, losses, start = [], [], time.perf_counter()
    for i, (at, generator) in enumerate(batches(train_set, args.batch, args.epochs, args.seed), 1):
        x, labels = task.batch(train_set, at, generator)
        optimizer.zero_grad()
        loss = cross_entropy(net(x), labels, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if i % max(1, steps // POINTS) == 0:
            recent = losses[-max(1, steps // POINTS):]
            curve.append({"samples": i * args.batch, "loss": sum(recent) / len(recent),
                          "accuracy": accuracy(net, task, test_set, SOME)})
            print({k: round(v, 4) for k, v in curve[-1].items()}, f"{time.perf_counter() - start:.0f} s", flush=True)
        if time.perf_counter() - start > args.seconds:
            break
    return {"accuracy": accuracy(net, task, test_set), "test samples": len(test_set), "steps": len(losses),
            "steps planned": steps, "complete": len(losses) == steps, "curve": curve,
            "seconds": time.perf_counter() - start, "firing by stage": firing(net, task, test_set),
            "decays": decays(net), "share of states kept": net.report()["kept share"]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets; see _t_revsnn.py")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--epochs", type=float, help="of the training set; default: the task's")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--encoding", default="split")
    parser.add_argument("--rezero", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600, help="training ends then, and the file says so")
    parser.add_argument("--limit", type=int, help="first samples of either set only")
    parser.add_argument("--quick", action="store_true", help="a few small steps: does it run?")
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    args.epochs = args.epochs or task.epochs
    if args.quick:
        args.limit, args.epochs, args.batch = 64, 1, 16
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        data = tuple(task.read(args.data, split, args.limit, task.T) for split in ("train", "test"))
        torch.manual_seed(args.seed)
        net = t_revsnn(task.channels, 10, task.T, variant=task.variant, kernel_size=args.kernel,
                       encoding=args.encoding, rezero=args.rezero).to(memory_format=torch.channels_last)
        row = {"task": args.task, "seed": args.seed, "parameters": sum(p.numel() for p in net.parameters()),
               **train(net, task, data, args)}
    finally:
        torch.set_num_threads(before)
    options = {k: v for k, v in vars(args).items() if k not in ("data", "task", "seed")}
    path = save(f"accuracy_t_revsnn_{args.task}", [row], channels=task.channels, T=task.T, variant=task.variant,
                training_samples=len(data[0]), **options)
    table("T-RevSNN on real data", [row],
          ["task", "parameters", "steps", "accuracy", "share of states kept", "seconds"])
    print("written:", path.name)


if __name__ == "__main__":
    main()
