"""Peak memory of a training step against the number of time steps and the depth, and of one layer alone.

    python -m benchmarks.memory_gpu [--seconds 60]

Peak bytes of the allocator over weights, optimizer and batch, beside the floor (benchmarks._networks). The network is
`depth` times convolution, batch norm, LIF at one width, so that its peak per neuron and time step can be read off. The
layer is alone: input, spikes and gradients count too.
"""
from __future__ import annotations

import gc
import sys

import torch

from benchmarks._gpu import Run, start
from benchmarks._measure import table
from benchmarks._networks import floor, plain_network
from benchmarks._training import CHECKPOINT, MEMOPT, NATIVE, OURS, Training
from benchmarks.neurons_gpu import layers, rivals

MIB = 1 << 20
STEPS = (4, 8, 16, 32, 64)
DEPTHS = (2, 4, 8, 16, 32)
DEPTH, T = 8, 16  # what stays fixed while the other is varied
WIDTH, BATCH, SIDE = 64, 32, 32
NEURONS = 2**20  # of the layer alone
TINY = {"steps": (2, 4), "depths": (1, 2), "depth": 2, "T": 2, "width": 4, "batch": 2, "side": 4, "neurons": 64}
FULL = {"steps": STEPS, "depths": DEPTHS, "depth": DEPTH, "T": T, "width": WIDTH, "batch": BATCH, "side": SIDE,
        "neurons": NEURONS}


def network_figures(run: Run, size: dict, method: str, autocast: bool, depth: int, steps: int) -> dict:
    gc.collect()
    shape = (steps, size["batch"], 3, size["side"], size["side"])
    network = plain_network(depth, size["width"], shape)
    least = floor(network, run.device, autocast)
    training = Training(network, method, run.device, autocast)
    training.step()
    training.rest()
    peak = run.peak(training.step)
    neurons = size["batch"] * size["width"] * size["side"] ** 2 * depth
    return {"peak, MiB": peak / MIB, **least.columns(peak), "peak per neuron and step, B": peak / neurons / steps}


def networks(run: Run, size: dict) -> None:
    methods = (NATIVE, *OURS, MEMOPT[0], CHECKPOINT)
    cases = [("T", size["depth"], steps, a) for a in (False, True) for steps in size["steps"]]
    cases += [("depth", depth, size["T"], False) for depth in size["depths"]]
    for against, depth, steps, autocast in cases:
        for method in methods:
            row = {"against": against, "depth": depth, "T": steps, "method": method,
                   "precision": "autocast bfloat16" if autocast else "float32"}
            run.add("rows", row, lambda m=method, a=autocast, d=depth, t=steps: network_figures(run, size, m, a, d, t))
    run.save()


def layer_figures(run: Run, name: str, steps: int, neurons: int) -> dict:
    found = layers(run, name)
    x = torch.randn(steps, neurons, device=run.device)
    row = {}
    for who, call in rivals(found, x, backward=True).items():
        call()
        peak = run.peak(call)
        row |= {f"{who}, MiB": peak / MIB, f"{who}, B per neuron and step": peak / neurons / steps}
    row["times less"] = row["framework, MiB"] / row["ours, MiB"]
    return row


def single_layers(run: Run, size: dict) -> None:
    for name in ("LIF", "Leaky"):
        for steps in size["steps"]:
            row = run.add("layers", {"neuron": name, "T": steps, "dtype": "float32"},
                          lambda name=name, steps=steps: layer_figures(run, name, steps, size["neurons"]))
    if "failed" not in row:
        run.summarize(f"Leaky alone, T={row['T']}: peak", row["framework, MiB"], row["ours, MiB"], row["times less"],
                      "MiB")
    run.save()


def summarize(run: Run, size: dict) -> None:
    last = {(r["precision"], r["method"]): r for r in run.sections["rows"]
            if r["against"] == "T" and r["T"] == size["steps"][-1] and "failed" not in r}
    for (kind, method), row in last.items():
        base = last.get((kind, NATIVE))
        if method in OURS and base is not None:
            run.summarize(f"conv-norm-LIF x{size['depth']}, T={row['T']}, {kind}, {method}: peak", base["peak, MiB"],
                          row["peak, MiB"], base["peak, MiB"] / row["peak, MiB"], "MiB")


def main(argv: list[str] | None = None) -> int:
    run = start("memory_gpu", __doc__, argv, seconds=60)
    if run is None:
        return 0
    size = TINY if run.tiny else FULL
    with run:
        run.facts["size"] = size
        single_layers(run, size)
        try:
            networks(run, size)
        finally:
            summarize(run, size)
    columns = ["against", "depth", "T", "precision", "method", "peak, MiB", "of the floor",
               "peak per neuron and step, B"]
    table("peak of a training step", run.sections["rows"], columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
