"""Converts a trained network to spikes with SpikingJelly's recipes, natively and with our neurons, and trains on.

    python examples/ann2snn.py --out ann2snn_out                       # about a minute on one core
"""
from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # the recipes draw a bar each

import _data
import torch
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import ann2snn, functional, neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from shared_core.memory import measure
from sj_memext.functional import multi_step_forward

STEPS = (4, 8, 16)  # time steps at which the converted networks are asked
FINE_TUNING = 8
CAPTION = """equal: every output of every step is that of the framework's own neurons.
peak: highest sum of live tensors over what was there before a step of fine-tuning, T = 8."""


class Qcfs(nn.Module):
    """Quantized clip-floor-shift of Bu et al. (ICLR 2022): y = s clip(floor(x L / s + 1/2) / L, 0, 1), s learnable.
    It is what an IF neuron with threshold s, started at s / 2, emits on average over L steps of constant input."""

    def __init__(self, levels: int = 8):
        super().__init__()
        self.levels, self.scale = levels, nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = (x / self.scale).clamp(0, 1)
        step = torch.floor(x * self.levels + 0.5).clamp(0, self.levels) / self.levels
        return self.scale * (x + (step - x).detach())


def build(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 12, 3, stride=2), nn.BatchNorm2d(12), activation(), nn.AvgPool2d(2),
                         nn.Conv2d(12, 24, 3), nn.BatchNorm2d(24), activation(), nn.Flatten(), nn.Linear(24 * 16, 10))


def train(net: nn.Module, batches, forward=lambda net, images: net(images), rate: float = 3e-3, after=lambda: None):
    optimizer = torch.optim.Adam(net.parameters(), rate)
    net.train()
    for batch in batches:
        optimizer.zero_grad()
        cross_entropy(forward(net, batch.images), batch.labels).backward()
        optimizer.step()
        after()
    return net.eval()


def recipes(loader) -> dict[str, ann2snn.FXConversionRecipe]:
    """SpikingJelly 2.0.0's. Rate coding: a threshold is the largest activation, its 99.9 % quantile, a share of it."""
    return {"rate coding, max": ann2snn.RateCodingRecipe(loader, mode="Max"),
            "rate coding, 99.9%": ann2snn.RateCodingRecipe(loader, mode="99.9%"),
            "rate coding, max / 2": ann2snn.RateCodingRecipe(loader, mode=1 / 2),
            "rate coding, per channel": ann2snn.RateCodingRecipe(loader, mode="99.9%", channel_wise=True,
                                                                 half_threshold=True),
            "local threshold balancing": ann2snn.LocalThresholdBalancingRecipe(loader)}


def convert(ann: nn.Module, recipe: ann2snn.FXConversionRecipe) -> nn.Module:
    return ann2snn.FXConverter(recipe).convert(copy.deepcopy(ann))


def convert_qcfs(ann: nn.Sequential) -> nn.Sequential:
    """No recipe is needed: the thresholds were learned."""
    scaler = ann2snn.modules.VoltageScaler
    parts = []
    for module in copy.deepcopy(ann):
        if isinstance(module, Qcfs):
            scale = module.scale.item()
            parts.append(nn.Sequential(scaler(1 / scale), neuron.HalfThresholdIFNode(), scaler(scale)))
        else:
            parts.append(module)
    return nn.Sequential(*parts).eval()


def run(net: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Outputs [T, n, 10] of a converted network in step mode "s": the same image in every step."""
    functional.reset_net(net)
    with torch.no_grad():
        out = torch.stack([net(images) for _ in range(steps)])
    functional.reset_net(net)
    return out


def compared(name: str, snn: nn.Module, test: _data.Digits) -> dict:
    """Accuracy of a converted network, and whether its outputs stay the same when it gets our neurons."""
    run(snn, test.images, 1)
    start = time.perf_counter()
    native = run(snn, test.images, max(STEPS))
    middle = time.perf_counter()
    ours = run(sj_memext.retrofit(snn, "neuron"), test.images, max(STEPS))
    end = time.perf_counter()
    sj_memext.restore(snn)
    return {"name": name, "equal": torch.equal(native, ours), "native_s": middle - start, "ours_s": end - middle,
            "accuracy": {t: share(native[:t], test) for t in STEPS},
            "of_ours": {t: share(ours[:t], test) for t in STEPS}}


def share(out: Tensor, test: _data.Digits) -> float:
    return (out.sum(0).argmax(1) == test.labels).float().mean().item()


def fine_tuned(snn: nn.Module, method: str, train_set, test: _data.Digits, args) -> dict:
    """A few more training steps with the spikes' own gradient, T = 8. All methods have the same one."""
    net = copy.deepcopy(snn)
    steps = FINE_TUNING
    if method in ("loop", "reverse"):
        whole = functional.multi_step_forward if method == "loop" else multi_step_forward
        forward = lambda net, images: whole(images.expand(steps, *images.shape), net).mean(0)  # noqa: E731
    else:
        functional.set_step_mode(net, "m")
        forward = lambda net, images: net(images.expand(steps, *images.shape)).mean(0)  # noqa: E731
        if method != "native":
            sj_memext.retrofit(net, method)
    batches = _data.batches(train_set, args.batch, args.steps, args.seed)
    first = batches[0]
    peak = measure(lambda: cross_entropy(forward(net, first.images), first.labels).backward(),
                   timeline=False).peak_bytes
    net.zero_grad()
    functional.reset_net(net)
    start = time.perf_counter()
    train(net, batches, forward, rate=3e-4, after=lambda: functional.reset_net(net))
    seconds = time.perf_counter() - start
    functional.set_step_mode(net, "s")
    return {"method": method, "peak_mib": peak / 2**20, "step_s": seconds / args.steps,
            "accuracy": share(run(net, test.images, steps), test)}


def main(arguments=None) -> dict:
    args = parse(arguments)
    train_set, test = _data.load()
    test = test[:args.test]
    batches = _data.batches(train_set, args.batch, args.steps, args.seed)
    loader = [(batch.images, batch.labels) for batch in batches[:10]]
    torch.manual_seed(args.seed)
    ann, quantized = train(build(), batches), train(build(Qcfs), batches)
    found = {"seed": args.seed, "ann": share(ann(test.images)[None], test),
             "qcfs": share(quantized(test.images)[None], test), "rows": [], "fine_tuning": []}
    nets = {name: convert(ann, recipe) for name, recipe in recipes(loader).items()}
    nets["QCFS"] = convert_qcfs(quantized)
    found["rows"] = [compared(name, snn, test) for name, snn in nets.items()]
    for method in ("native", "recompute", "loop", "reverse"):
        found["fine_tuning"].append(fine_tuned(nets["local threshold balancing"], method, train_set, test, args))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ann2snn.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    for table in tables(found):
        console.print(table)
    console.print(CAPTION)
    return found


def parse(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("ann2snn_out"), help="folder for the JSON")
    parser.add_argument("--steps", type=int, default=150, help="training steps, of the network and after; default: 150")
    parser.add_argument("--batch", type=int, default=64, help="digits per step; default: 64")
    parser.add_argument("--test", type=int, default=1000, help="digits to test on; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; default: 0")
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps, args.batch, args.test = min(args.steps, 12), min(args.batch, 16), min(args.test, 50)
    if args.steps < 10 or args.batch < 1 or args.test < 1:
        parser.error(f"--steps {args.steps} --batch {args.batch} --test {args.test}; at least 10, 1 and 1 are needed")
    return args


def tables(found: dict) -> list[Table]:
    first = Table(title=f"converted digits: ReLU {found['ann']:.1%}, QCFS {found['qcfs']:.1%} before",
                  title_justify="left")
    first.add_column("recipe", no_wrap=True)
    for name in (*(f"T = {t}" for t in STEPS), "equal", "native ms", "ours ms"):
        first.add_column(name, justify="right", no_wrap=True)
    for row in found["rows"]:
        first.add_row(row["name"], *(f"{row['accuracy'][t]:.1%}" for t in STEPS), "yes" if row["equal"] else "NO",
                      f"{row['native_s'] * 1e3:.0f}", f"{row['ours_s'] * 1e3:.0f}")
    second = Table(title=f"fine-tuning after local threshold balancing, T = {FINE_TUNING}", title_justify="left")
    for name in ("method", "accuracy", "peak MiB", "step ms"):
        second.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in found["fine_tuning"]:
        second.add_row(row["method"], f"{row['accuracy']:.1%}", f"{row['peak_mib']:.2f}", f"{row['step_s'] * 1e3:.0f}")
    return [first, second]


if __name__ == "__main__":
    main()
