"""Memory of reversible neurons against normal ones: the table of RevSNN's Fig. 5 (CIFAR shape, batch 128).

    python -m benchmarks.reversible_memory [--threads 2] [--quick]

Neuron memory is what the neurons add to what the layers around them need anyway: the tensors that they keep for the
backward pass and no neighbour keeps, and the potentials that they hand on. For normal neurons it is counted from the
bytes per element and step that SpikingJelly's LIFNode keeps on this machine (measured), for reversible ones from those
that ours keeps; the spikes, or the real-valued output, belong to the layer that reads them, and count as everything
else. A step's peak is predicted on tensors without memory (shared_core.plan), so no row needs a machine that could run
it. Small batches are also measured, in a training step on the CPU: there the neurons' share is what saved_bytes has
over the same net with neurons that keep nothing.
"""
from __future__ import annotations

import argparse
import time
from functools import cache

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from benchmarks._measure import quantiles, save, table
from benchmarks._reversible import NETWORKS, STEPS, TINY
from shared_core._plan_copy import unwrapped
from shared_core._plan_methods import NATIVE, Planner
from shared_core._plan_trace import mean_of_outputs
from shared_core.memory import measure
from sj_memext import restore, retrofit
from sj_memext.neuron import ReversibleLIFNode

MIB = 2**20
BATCH = 128
ASKED = 58.65  # times less neuron memory for VGG-19 at T = 20 (RevSNN, Section 5.2)
MEASURED = (("vgg11", 4, 4), ("vgg11", 8, 4), ("vgg19", 4, 2), ("resnet18", 4, 2))
METHOD = "reversible"


def neurons_of(net: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """(neurons of a batch, layers of neurons), from one step of one sample."""
    sizes: list[int] = []
    hooks = [m.register_forward_hook(lambda m, i, out: sizes.append(out[0].numel()))
             for m in net.modules() if isinstance(m, neuron.BaseNode)]
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 1, *shape[2:]))
    for hook in hooks:
        hook.remove()
    functional.reset_net(net)
    net.train()
    return sum(sizes) * shape[1], len(sizes)


@cache
def kept_per_step(steps: int) -> dict[str, float]:
    """Bytes per element and step that one layer of neurons keeps, beside its output, measured."""
    found, x = {}, torch.randn(steps, 2, 64, 16, 16).requires_grad_()
    options = {"surrogate_function": surrogate.ATan(), "step_mode": "m"}
    for name, node in (("normal", neuron.LIFNode(**options)), (METHOD, ReversibleLIFNode(**options))):
        kept = measure(lambda node=node: node(x * 1.0), timeline=False).saved_bytes
        functional.reset_net(node)
        found[name] = kept / x.numel() - (4 if name == METHOD else 0)  # its output, which the next layer keeps
    return found


def rows_of(name: str, build, steps: int, batch: int, side: int) -> dict:
    """Neuron memory and the rest of a training step's peak, with normal and with reversible neurons; MiB."""
    shape, kept = (steps, batch, 3, side, side), kept_per_step(steps)
    net = build()
    neurons, layers = neurons_of(net, shape)
    start = time.perf_counter()
    planner = Planner(unwrapped(net), shape, 1, mean_of_outputs, "cpu", None)
    row: dict[str, object] = {"network": name, "T": steps, "batch": batch, "layers": layers, "neurons": neurons,
                              "kept per element and step, B": kept}
    for method, options in ((NATIVE, {}), (METHOD, {"groups": 2})):
        kind = "normal" if method == NATIVE else METHOD
        own = neurons * (kept[kind] * steps + 4) / MIB  # kept for backward, and the potential handed on
        found = planner.method(method, options)
        row[f"{kind} neurons, MiB"] = own
        row[f"{kind} peak, MiB"] = None if found.peak is None else found.peak.peak / MIB
        row[f"{kind} rest, MiB"] = None if found.peak is None else found.peak.peak / MIB - own
        if found.problem:
            row["problem"] = found.problem
    row["times less neuron memory"] = row["normal neurons, MiB"] / row[f"{METHOD} neurons, MiB"]
    row["planned in, s"] = time.perf_counter() - start
    return row


class _KeepsNothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


def measured_row(name: str, build, steps: int, batch: int, side: int) -> dict:
    """Bytes kept for the backward pass in a real step: normal, reversible, and with neurons that keep nothing."""
    torch.manual_seed(0)
    net, x = build(), torch.randn(steps, batch, 3, side, side)
    neurons, _ = neurons_of(net, x.shape)
    row: dict[str, object] = {"network": name, "T": steps, "batch": batch}

    def step():
        net(x).mean().backward()

    def take(kind: str) -> None:
        found = measure(step)
        row[f"{kind} kept, MiB"], row[f"{kind} peak, MiB"] = found.saved_bytes / MIB, found.peak_bytes / MIB
        functional.reset_net(net)
        net.zero_grad(set_to_none=True)

    take("normal")
    retrofit(net, METHOD)
    take(METHOD)
    restore(net)
    for module in net.modules():
        if isinstance(module, neuron.BaseNode):
            module.forward = _KeepsNothing.apply
    take("no")
    for kind in ("normal", METHOD):
        row[f"{kind} neurons, MiB"] = row[f"{kind} kept, MiB"] - row["no kept, MiB"] + 4 * neurons / MIB
    row["times less neuron memory"] = row["normal neurons, MiB"] / row[f"{METHOD} neurons, MiB"]
    return row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tiny network: does it run?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    points = [(name, build, steps) for name, build in NETWORKS.items()
              for steps in STEPS["vgg" if name.startswith("vgg") else "resnet"]]
    small = [(name, NETWORKS[name], steps, batch, 32) for name, steps, batch in MEASURED]
    if args.quick:
        points, small = [("tiny", TINY, 2)], [("tiny", TINY, 2, 2, 8)]
    rows = []
    for name, build, steps in points:
        print(f"{name}, T = {steps}", flush=True)
        try:
            rows.append(rows_of(name, build, steps, 4 if args.quick else BATCH, 8 if args.quick else 32))
        except Exception as problem:
            rows.append({"network": name, "T": steps, "failed": f"{type(problem).__name__}: {problem}"})
    measured = [measured_row(*point) for point in small]
    asked = [{"network": r["network"], "T": r["T"], "figure": "times less neuron memory", "asked": ASKED,
              "met": r["times less neuron memory"] >= ASKED}
             for r in rows if (r["network"], r["T"]) == ("vgg19", 20) and "failed" not in r]
    columns = ["network", "T", "normal neurons, MiB", f"{METHOD} neurons, MiB", "times less neuron memory",
               "normal rest, MiB", f"{METHOD} rest, MiB", "normal peak, MiB", f"{METHOD} peak, MiB"]
    table(f"one training step, batch {BATCH}, predicted", rows, columns)
    table("measured", measured, ["network", "T", "batch", "normal neurons, MiB", f"{METHOD} neurons, MiB",
                                 "times less neuron memory", "normal peak, MiB", f"{METHOD} peak, MiB"])
    for verdict in asked:
        print(verdict)
    seconds = [r["planned in, s"] for r in rows if "failed" not in r]
    print("written:", save("reversible_memory", rows, measured=measured, asked=asked, quick=args.quick,
                           planning=quantiles(seconds) if seconds else None).name)


if __name__ == "__main__":
    main()
