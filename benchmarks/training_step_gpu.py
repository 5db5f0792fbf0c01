"""Whole training steps on the GPU: SpikingJelly's networks as they are, with our methods, and with its own memopt.

    python -m benchmarks.training_step_gpu [--seconds 215]

Per network, precision (float32; autocast bfloat16) and method: time of a step (forward, loss, backward, SGD) and peak
bytes of the allocator over weights, optimizer and batch. Each method starts from the same weights; loss and gradients
of its first step are compared with native's. Torch's defaults hold otherwise (TF32 in convolutions, no
cudnn.benchmark). memopt levels 2 to 4 search by running the network; a search that takes too long is a failure, with
that reason.
"""
from __future__ import annotations

import gc
import sys

import torch

from benchmarks._gpu import Run, spread, start
from benchmarks._measure import quantiles, table
from benchmarks._networks import MEMOPT, NATIVE, NETWORKS, OURS, TINY, Network, Training

MIB = 1 << 20
SEARCH_S = 15.0  # for one memopt search
First = dict[tuple[str, bool], tuple[float, list]]  # (network, autocast) -> native's first loss and gradients


def precision(autocast: bool) -> str:
    return "autocast bfloat16" if autocast else "float32"


def distance(gradients: list, wanted: list) -> float | None:
    """Norm-relative difference of all gradients together; None if there is nothing to compare."""
    if len(gradients) != len(wanted) or any(a.shape != b.shape for a, b in zip(gradients, wanted)):
        return None
    off = sum((a.double() - b.to(a.device).double()).square().sum().item() for a, b in zip(gradients, wanted))
    size = sum(b.double().square().sum().item() for b in wanted)
    return (off / size) ** 0.5 if size else None


def first_step(training: Training, key: tuple[str, bool], method: str, first: First) -> dict:
    """Loss of the first step, and how far it and the gradients are from native's."""
    torch.manual_seed(1)  # the same dropout
    loss = training.loss_and_gradients().item()
    gradients = [p.grad.detach() for p in training.net.parameters() if p.grad is not None]
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
    row = first_step(training, (network.name, autocast), method, first)
    if method in MEMOPT:
        row["search, s"] = training.search
    seconds, failed = run.in_turns({"step": training.step}, rounds=15, flush=False)
    if failed:
        return {**row, "failed": failed["step"]}
    row |= spread("step", seconds["step"], 1e3, "ms")
    training.rest()
    row["peak, MiB"] = run.peak(training.step) / MIB
    row["samples/s"] = network.shape[1] / quantiles(seconds["step"])["median"]
    return row


def measure(run: Run, networks: tuple[Network, ...], methods: tuple[str, ...], autocasts: tuple[bool, ...],
            first: First) -> None:
    for network in networks:
        for autocast in autocasts:
            for method in methods:
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
    networks = TINY if run.tiny else NETWORKS
    first: First = {}
    with run:
        try:
            run.facts["cudnn.allow_tf32"] = torch.backends.cudnn.allow_tf32
            measure(run, networks, (NATIVE, *OURS, MEMOPT[0]), (False, True), first)
            for level in MEMOPT[1:]:
                measure(run, networks, (level,), (False,), first)
            for level in MEMOPT[1:]:
                measure(run, networks, (level,), (True,), first)
        finally:
            compare(run)
    rows = [{**row, "step, ms": row.get("step, ms", row.get("failed", ""))} for row in run.sections["rows"]]
    table("one training step", rows, ["network", "precision", "method", "step, ms", "time of native's", "peak, MiB",
                                      "peak of native's", "gradients unlike native's"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
