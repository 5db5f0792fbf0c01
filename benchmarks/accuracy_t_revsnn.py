"""Test accuracy of small T-RevSNNs on real data: digits, CIFAR-10 (stored as JPEG), and events of digits.

    python -m benchmarks.accuracy_t_revsnn --data DIR --task mnist|cifar10|events [--epochs E] [--seconds S] [--quick]

One seed, one run, through the reversible backward. The network sees every image once encoded, and events step by step;
the loss is that of the last step. Result file: accuracy_t_revsnn_TASK.json.

AdamW, without the published recipe's adaptive clipping, LAMB and auxiliary heads. The published window (derivative 1 on
[0, 1]) then makes gradients grow 1.8-fold a column; ATan(1), of derivative 1/2 at the threshold, keeps them level, and
is what is trained with here (--surrogate window: the published one). The head reads firing rates, whose differences
between images are small: it learns --head times as fast.
"""
from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from spikingjelly.activation_based import surrogate
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks._measure import save, table
from benchmarks._t_revsnn import TASKS, Split, Task, batches
from sj_memext.model import t_revsnn

POINTS, SOME = 10, 500  # of the curve; test samples at each but the last
SURROGATES = {"atan": lambda: surrogate.ATan(1.0), "window": lambda: None}


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


def course(done: float) -> float:
    """Share of the highest learning rate after this share of the training: up over the first tenth, then a cosine."""
    return max(0.02, 10 * done) if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * min(1.0, (done - 0.1) / 0.9))


def train(net: nn.Module, task: Task, data: tuple[Split, Split], args) -> dict:
    train_set, test_set = data
    head = dict.fromkeys(net.head.parameters())
    steps = int(args.epochs * len(train_set)) // args.batch
    optimizer = torch.optim.AdamW([{"params": [p for p in net.parameters() if p not in head], "factor": 1.0},
                                   {"params": list(head), "factor": args.head}], weight_decay=0.01)
    curve, losses, start, done, testing = [], [], time.perf_counter(), 0.0, 0.0
    for i, (at, generator) in enumerate(batches(train_set, args.batch, args.epochs, args.seed), 1):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * group["factor"] * course(done)
        x, labels = task.batch(train_set, at, generator)
        optimizer.zero_grad()
        loss = cross_entropy(net(x), labels, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        # Where time is short the learning rate still comes down to 0: its course is that of the scarcer of the two.
        now = time.perf_counter()
        trained = now - start - testing
        before, done = done, max(i / steps, trained / args.seconds)
        if int(done * POINTS) > int(before * POINTS):
            recent = losses[-max(1, len(losses) // POINTS):]
            curve.append({"samples": i * args.batch, "loss": sum(recent) / len(recent),
                          "accuracy": accuracy(net, task, test_set, SOME)})
            testing += time.perf_counter() - now
            print({k: round(v, 4) for k, v in curve[-1].items()}, f"{trained:.0f} s", flush=True)
        if done >= 1:
            break
    return {"accuracy": accuracy(net, task, test_set), "test samples": len(test_set), "steps": len(losses),
            "steps planned": steps, "complete": len(losses) == steps, "curve": curve,
            "seconds": trained, "firing by stage": firing(net, task, test_set),
            "decays": decays(net), "share of states kept": net.report()["kept share"]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets; see _t_revsnn.py")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--epochs", type=float, help="of the training set; default: the task's")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.5e-2)
    parser.add_argument("--head", type=float, default=3.0, help="times this rate, for the last layer")
    parser.add_argument("--surrogate", choices=SURROGATES, default="atan")
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--encoding", default="split")
    parser.add_argument("--rezero", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600, help="of training; it ends then, and the file says so")
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
                       encoding=args.encoding, rezero=args.rezero,
                       surrogate_function=SURROGATES[args.surrogate]()).to(memory_format=torch.channels_last)
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
