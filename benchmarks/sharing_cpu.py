"""Shared membranes on the CPU: peak and time of a training step of EfficientLIF-Net's ResNet19 and VGG16.

    python -m benchmarks.sharing_cpu [--rounds 3] [--threads 2] [--networks resnet19 vgg16] [--quick]

Images of 3x32x32, T = 5, batch 16. Peak and bytes kept: live tensors of a step, over network and batch. Time: loss and
gradients, all variants of a network in turns, in one process. Sharing is another network than native, and so is time
outermost in training (batch norm with the statistics of a step): gradients are compared in the tests, not here.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from benchmarks._measure import in_turns, quantiles, ratio, save, table
from shared_core.lif_memory import lif_memory, sharing_of
from shared_core.memory import measure
from sj_memext import model

MIB = 1 << 20
NATIVE, OUTERMOST = "native, multi-step", "native, time outermost"
# variant -> (sharing, prefer, retrofit method beside it)
SHARED = {"[L]": ("L", "balanced", None), "[L], memory": ("L", "memory", None), "[L], speed": ("L", "speed", None),
          "[L], recompute": ("L", "balanced", "recompute"), "[L], graph": ("L", "graph", None),
          "[L], graph, compress": ("L", "graph", "compress"), "[L], graph, recompute": ("L", "graph", "recompute"),
          "[C#2]": ("C#2", "balanced", None),
          "[C#2], recompute": ("C#2", "balanced", "recompute"), "[L+C#2]": ("L+C#2", "balanced", None),
          "[L+C#2], recompute": ("L+C#2", "balanced", "recompute"),
          "[L+C#2], graph, recompute": ("L+C#2", "graph", "recompute")}
VARIANTS = (NATIVE, OUTERMOST, "recompute", *SHARED)
NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet19": model.resnet19, "vgg16": model.vgg16}
SHAPE = (5, 16, 3, 32, 32)
QUICK = {"shape": (2, 2, 3, 16, 16), "widths": {"resnet19": (4, 4, 8, 8), "vgg16": (4, 4, 4, 8, 8)}}
COLUMNS = ["network", "variant", "peak, MiB", "peak of native's", "kept, MiB", "membranes, MiB", "step, ms",
           "time of native's", "time of time outermost's"]


class Training:
    """A network in one variant with its batch; `step()` is loss and gradients."""

    def __init__(self, network: str, variant: str, shape: tuple[int, ...], widths: tuple[int, ...] | None = None):
        torch.manual_seed(0)
        self.stepped = variant == OUTERMOST
        self.net = NETWORKS[network](step_mode="s" if self.stepped else "m", **({"widths": widths} if widths else {}))
        sharing, prefer, method = SHARED.get(variant, (None, None, variant if variant == "recompute" else None))
        if sharing is not None:
            how = sharing_of(sharing)
            sj_memext.share(self.net, self.net.sharing_groups() if how.layers else None, how.channels,
                            batch_norm="per_step", prefer=prefer)
        if method is not None:
            sj_memext.retrofit(self.net, method)
        self.x = torch.randn(shape[1:]).unsqueeze(0).repeat(shape[0], 1, 1, 1, 1)
        self.labels = torch.randint(10, shape[1:2])
        self.sharing = sharing

    def forward(self) -> Tensor:
        return torch.stack([self.net(x) for x in self.x]) if self.stepped else self.net(self.x)

    def step(self) -> None:
        functional.reset_net(self.net)
        self.net.zero_grad(set_to_none=True)
        cross_entropy(self.forward().mean(0), self.labels).backward()

    def rest(self) -> None:
        """Between steps: no gradients, no states."""
        self.net.zero_grad(set_to_none=True)
        functional.reset_net(self.net)


def measured(network: str, shape: tuple[int, ...], widths, rounds: int) -> list[dict]:
    """The rows of one network."""
    rows, trainings = [], {}
    for variant in VARIANTS:
        print(f"{network}, {variant}", flush=True)
        row = {"network": network, "T": shape[0], "batch": shape[1], "variant": variant}
        rows.append(row)
        try:
            training = Training(network, variant, shape, widths)
            training.step()  # unmeasured: libraries are loaded, caches filled
            training.rest()
            found = measure(training.step, timeline=False)
            training.rest()
            row |= {"peak, MiB": found.peak_bytes / MIB, "kept, MiB": found.saved_bytes / MIB,
                    "held, MiB": found.held_bytes / MIB, "membranes, MiB": lif_memory(
                        network, shape[-1], sharing=training.sharing, widths=widths).forward_mib * shape[1]}
            trainings[variant] = training
        except Exception as problem:
            row["failed"] = f"{type(problem).__name__}: {problem}"

    def run(training: Training) -> None:
        training.step()
        training.rest()

    seconds = in_turns({name: lambda t=t: run(t) for name, t in trainings.items()}, rounds)
    peaks = {row["variant"]: row.get("peak, MiB") for row in rows}
    for row in rows:
        variant = row["variant"]
        if variant not in seconds:
            continue
        spread = quantiles(seconds[variant])
        row |= {"step, ms": spread["median"] * 1e3, "step, p20-p80": [spread["p20"] * 1e3, spread["p80"] * 1e3]}
        for rival, name in ((NATIVE, "native's"), (OUTERMOST, "time outermost's")):
            if rival in seconds:
                row[f"time of {name}"] = ratio(seconds, variant, rival)["median"]
                row[f"peak of {name}"] = row["peak, MiB"] / peaks[rival]
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=SHAPE[1])
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round: does it run?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    shape = QUICK["shape"] if args.quick else (SHAPE[0], args.batch, *SHAPE[2:])
    rows: list[dict] = []
    for network in args.networks:
        widths = QUICK["widths"][network] if args.quick else None
        rows += measured(network, shape, widths, 1 if args.quick else args.rounds)
        save("sharing_cpu", rows, threads=args.threads, rounds=args.rounds, quick=args.quick, shape=shape)
    table("one training step with shared membranes", rows, COLUMNS)
    table("failed", [row for row in rows if "failed" in row], ["network", "variant", "failed"])
    print("written: sharing_cpu.json")


if __name__ == "__main__":
    main()
