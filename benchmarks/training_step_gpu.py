"""Whole training steps on the GPU: SpikingJelly's networks as they are, with our methods, and with what rivals them.

    python -m benchmarks.training_step_gpu [--seconds 215]

The networks of benchmarks.training_step_cpu in float32, and two for ImageNet under autocast to bfloat16; then the same
with the precisions exchanged. Per network, precision and method (benchmarks._training): time of a step (forward, loss,
backward, SGD) and peak bytes of the allocator over weights, optimizer and batch, beside the floor. Each method starts
from the same weights; loss and gradients of its first step are compared with native's. Torch's defaults hold otherwise
(TF32 in convolutions, no cudnn.benchmark). memopt levels 2 to 4 search by running the network; a search that takes too
long is a failure, with that reason.
"""
from __future__ import annotations

import gc
import sys
from functools import cache

import torch

from benchmarks._gpu import Run, spread, start
from benchmarks._measure import quantiles, table
from benchmarks._networks import (
    SEW_RESNET18,
    SEW_RESNET34,
    SPIKFORMER,
    SPIKFORMER_8_384,
    TINY,
    VGG11,
    Floor,
    Network,
    floor,
)
from benchmarks._training import MEMOPT, NATIVE, OURS, Training, distance, first_step, rivals

MIB = 1 << 20
SEARCH_S = 12.0  # for one memopt search
Case = tuple[Network, bool]  # the bool: autocast
CASES: tuple[Case, ...] = ((VGG11, False), (SEW_RESNET18, False), (SPIKFORMER, False), (SEW_RESNET34, True),
                           (SPIKFORMER_8_384, True))
First = dict[tuple[str, bool], tuple[float, list]]  # (network, autocast) -> native's first loss and gradients


def precision(autocast: bool) -> str:
    return "autocast bfloat16" if autocast else "float32"


@cache
def least(network: Network, device: torch.device, autocast: bool) -> Floor:
    return floor(network, device, autocast)


def compared(training: Training, key: tuple[str, bool], method: str, first: First) -> dict:
    """Loss of the first step, and how far it and the gradients are from native's."""
    loss, gradients = first_step(training)
    if method == NATIVE:
        first[key] = loss, [g.cpu() for g in gradients]
    row: dict[str, object] = {"first loss": loss}
    if key in first:
        wanted, reference = first[key]
        row |= {"loss unlike native's": abs(loss - wanted), "gradients unlike native's": distance(gradients, reference)}
    return row


def figures(run: Run, network: Network, method: str, autocast: bool, first: First) -> dict:
    gc.collect()
    training = Training(network, method, run.device, autocast, min(SEARCH_S, run.left()))
    row = compared(training, (network.name, autocast), method, first)
    if method in MEMOPT:
        row["search, s"] = training.search
    seconds, failed = run.in_turns({"step": training.step}, rounds=15, flush=False)
    if failed:
        return {**row, "failed": failed["step"]}
    row |= spread("step", seconds["step"], 1e3, "ms")
    training.rest()
    peak = run.peak(training.step)
    row |= {"peak, MiB": peak / MIB, **least(network, run.device, autocast).columns(peak)}
    row["samples/s"] = network.shape[1] / quantiles(seconds["step"])["median"]
    return row


def measure(run: Run, cases: tuple[Case, ...], first: First, methods: tuple[str, ...] | None = None) -> None:
    """methods: None for all but memopt's levels 2 to 4."""
    for network, autocast in cases:
        for method in methods or rivals(network):
            case = {"network": network.name, "shape": list(network.shape), "precision": precision(autocast),
                    "method": method}
            run.add("rows", case, lambda n=network, m=method, a=autocast: figures(run, n, m, a, first))
        run.save()


def compare(run: Run) -> None:
    """Every row's figures also as a share of native's; ours go into the summary."""
    native = {(r["network"], r["precision"]): r for r in run.sections["rows"]
              if r["method"] == NATIVE and "failed" not in r}
    for row in run.sections["rows"]:
        base = native.get((row["network"], row["precision"]))
        if base is None or "failed" in row:
            continue
        row["time of native's"] = row["step, ms"] / base["step, ms"]
        row["peak of native's"] = row["peak, MiB"] / base["peak, MiB"]
        if row["method"] in OURS:
            what = f"{row['network']}, {row['precision']}, {row['method']}"
            run.summarize(f"{what}: step", base["step, ms"], row["step, ms"], 1 / row["time of native's"], "ms")
            run.summarize(f"{what}: peak", base["peak, MiB"], row["peak, MiB"], 1 / row["peak of native's"], "MiB")


def main(argv: list[str] | None = None) -> int:
    run = start("training_step_gpu", __doc__, argv, seconds=215)
    if run is None:
        return 0
    cases = tuple((network, False) for network in TINY) if run.tiny else CASES
    first: First = {}
    with run:
        try:
            run.facts["cudnn.allow_tf32"] = torch.backends.cudnn.allow_tf32
            measure(run, cases, first)
            measure(run, cases[::-1], first, MEMOPT[1:])  # the large ones first: there is most to find
            measure(run, tuple((network, not autocast) for network, autocast in cases), first)
        finally:
            compare(run)
    rows = [{**row, "step, ms": row.get("step, ms", row.get("failed", ""))} for row in run.sections["rows"]]
    table("one training step", rows, ["network", "precision", "method", "step, ms", "time of native's", "peak, MiB",
                                      "peak of native's", "of the floor", "gradients unlike native's"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
