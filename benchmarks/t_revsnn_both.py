"""Reversible in time, in depth, in both: training memory of T-RevSNN with coupled blocks, beside the paper's Table 6.

    python -m benchmarks.t_revsnn_both [--quick] [--blocks 2 6] [--time]

One network, four ways to train it: `Columns(reversible=)` is time, `ReversibleSequence(reversible=)` in its stages is
depth. Counted on fake tensors under float16 autocast at 224x224, T = 4, as in t_revsnn_memory; "measured" is the peak
of live tensors in a real step of a small net in float32, whose gradients are compared with plain autograd's.
The paper measured networks of other blocks: with time alone 88.1 of 267.1 MB (MS-ResNet-34), with time beside depth
55.4 of 127.1 MB (S-RevSNN-37).
"""
from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks._measure import in_turns, quantiles, ratio, save, table
from benchmarks._t_revsnn_counted import counted
from benchmarks._training import distance
from shared_core.memory import measure
from shared_core.reversible import ReversibleSequence
from sj_memext.model import t_revsnn

METHODS = {"none": (False, False), "time": (True, False), "depth": (False, True), "both": (True, True)}
TABLE_6 = {"time over none": 88.1 / 267.1, "both over depth": 55.4 / 127.1}
PAPERS, TINY = (64, 128, 256, 384), (16, 32, 64, 96)
MB = 1e6


def build(blocks: int, method: str, channels=PAPERS, variant: str = "imagenet") -> nn.Module:
    torch.manual_seed(0)
    net = t_revsnn(channels, 1000 if variant == "imagenet" else 10, variant=variant, coupled=blocks)
    net.columns.reversible, depth = METHODS[method]
    for module in net.modules():
        if isinstance(module, ReversibleSequence):
            module.reversible = depth
            module.check = False  # of the first step only
    return net


class Small:
    """A real training step of a small net."""

    def __init__(self, blocks: int, method: str, batch: int = 8):
        self.net = build(blocks, method, TINY, "cifar")
        with torch.no_grad():
            for decay in self.net.columns.decays:
                decay.uniform_(0.3, 0.9)  # as after some training
        self.x, self.labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step(self) -> None:
        self.net.zero_grad()
        cross_entropy(self.net(self.x), self.labels).backward()

    def gradients(self) -> list[torch.Tensor]:
        return [p.grad.clone() for p in self.net.parameters()]


def rows_of(blocks: int, size: int, channels, batches=(8, 16)) -> list[dict]:
    rows, wanted = [], None
    for method in METHODS:
        print(f"{blocks} blocks a stage, {method}", flush=True)
        low, high = (counted(partial(build, blocks, method, channels), batch, size) for batch in batches)
        many = batches[1] - batches[0]
        small = Small(blocks, method)
        real = measure(small.step, model=small.net, timeline=False)
        found = small.gradients()
        wanted = found if wanted is None else wanted
        rows.append({"blocks a stage": blocks, "reversible in": method, "MB per image": (high[0] - low[0]) / many / MB,
                     "kept, MB per image": (high[1] - low[1]) / many / MB, "measured peak, MB": real.peak_bytes / MB,
                     "measured kept, MB": real.saved_bytes / MB, "gradients unlike none's": distance(found, wanted)})
    first = rows[0]
    for row in rows:
        for figure in ("MB per image", "measured peak, MB"):
            row[f"{figure}, of none's"] = row[figure] / first[figure]
    return rows


def beside_the_paper(rows: list[dict]) -> list[dict]:
    """How much time saves, alone and beside depth, and what the paper found for its blocks."""
    found = []
    for blocks in dict.fromkeys(row["blocks a stage"] for row in rows):
        peaks = {row["reversible in"]: row["MB per image"] for row in rows if row["blocks a stage"] == blocks}
        for name, paper in TABLE_6.items():
            of, over = name.split(" over ")
            found.append({"blocks a stage": blocks, "figure": name, "ours": peaks[of] / peaks[over], "paper's": paper})
    return found


def times(blocks: int, rounds: int) -> list[dict]:
    nets = {method: Small(blocks, method) for method in METHODS}
    seconds = in_turns({method: net.step for method, net in nets.items()}, rounds)
    return [{"blocks a stage": blocks, "reversible in": name, **quantiles(found),
             "times none's": ratio(seconds, name, "none")["median"]} for name, found in seconds.items()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32x32, one block: does it run?")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 6], help="couplings in every stage")
    parser.add_argument("--time", action="store_true", help="also real steps of the small nets")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    size, channels, blocks = (32, TINY, [1]) if args.quick else (224, PAPERS, args.blocks)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for n in blocks for row in rows_of(n, size, channels)]
        timed = times(blocks[0], 1 if args.quick else args.rounds) if args.time else []
    finally:
        torch.set_num_threads(before)
    compared = beside_the_paper(rows)
    path = save("t_revsnn_both", rows, table_6=compared, times=timed, size=size, channels=channels, quick=args.quick)
    table("training memory, float16, one column's weights alike", rows, list(rows[0]))
    table("beside Table 6", compared, ["blocks a stage", "figure", "ours", "paper's"])
    table("a training step on the CPU", timed, ["reversible in", "median", "p20", "p80", "times none's"])
    print("written:", path.name)


if __name__ == "__main__":
    main()
