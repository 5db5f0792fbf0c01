"""Early exit on MNIST digits: each digit takes as many time steps as it needs (DT-SNN).

    python examples/early_exit.py                   # under a minute on two free cores

Trains a SpikingJelly network of T = 4 steps on the digits of examples/data, finds on held-out digits the threshold that
loses next to no accuracy, and prints what that saves on the test digits: steps, and energy, latency and energy-delay
product by the models of shared_core.hardware, from the spikes that were counted. Writes the report as JSON (which
`memext energy --compare` takes) and stacked bars as PNG.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import _data
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from shared_core.hardware import ExitReport, compare
from sj_memext.hardware import early_exit

STEPS, HELD_OUT, BATCH = 4, 1000, 64


def build(seed: int) -> nn.Module:
    """[T, N, 1, 28, 28] -> [T, N, 10]. There is no neuron behind the last layer: its outputs can be sure."""
    def lif() -> nn.Module:
        return neuron.LIFNode(tau=2.0, v_reset=None, surrogate_function=surrogate.ATan(), detach_reset=True)

    torch.manual_seed(seed)
    net = nn.Sequential(layer.Conv2d(1, 12, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(12), lif(),
                        layer.Conv2d(12, 24, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(24), lif(),
                        layer.Flatten(), layer.Linear(24 * 49, 10))
    functional.set_step_mode(net, "m")
    return sj_memext.retrofit(net, "neuron")


def shown(images: Tensor) -> Tensor:
    """An image is shown in every step."""
    return images.expand(STEPS, *images.shape)


def train(net: nn.Module, digits: _data.Digits, epochs: int, seed: int) -> None:
    """The loss asks for the right digit after every number of steps, so that few steps can be enough."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    steps = torch.arange(1, STEPS + 1).view(-1, 1, 1)
    for batch in _data.batches(digits, BATCH, epochs * (len(digits) // BATCH), seed):
        so_far = net(shown(batch.images)).cumsum(0) / steps
        optimizer.zero_grad()
        cross_entropy(so_far.flatten(0, 1), batch.labels.repeat(STEPS)).backward()
        optimizer.step()
        functional.reset_net(net)


def main(arguments=None) -> ExitReport:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("early_exit_out"), help="folder for early_exit.json and .png")
    parser.add_argument("--epochs", type=int, default=2, help="times through the digits; default: 2")
    parser.add_argument("--drop", type=float, default=0.002, help="accuracy to lose at most on held-out digits")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; default: 0")
    parser.add_argument("--quick", action="store_true", help="a few hundred digits: shows that it runs, learns little")
    args = parser.parse_args(arguments)
    if args.epochs < 1 or not 0 <= args.drop <= 1:
        parser.error(f"--epochs {args.epochs} --drop {args.drop}; at least one epoch, and a drop of 0 to 1, needed")
    digits, test = _data.load()
    if args.quick:
        digits, test = digits[:HELD_OUT + 8 * BATCH], test[:100]
    net = build(args.seed)
    train(net, digits[HELD_OUT:], args.epochs, args.seed)
    held_out = digits[:HELD_OUT]

    stopped = early_exit(net)
    found = stopped.calibrate([(shown(held_out.images), held_out.labels)], drop=args.drop)
    print(f"calibrated on {found.samples} digits: threshold {found.threshold:.4f}, accuracy {found.accuracy:.2%} "
          f"({found.full_accuracy:.2%} with all steps), {found.mean_steps:.2f} steps in the mean")
    report = stopped.report([(shown(test.images[at:at + 500]), test.labels[at:at + 500])
                             for at in range(0, len(test), 500)])
    print(report.text())
    args.out.mkdir(parents=True, exist_ok=True)
    report.to_json(args.out / "early_exit.json")
    compare({f"T = {STEPS}": report.full, "early exit": report.expected}, args.out / "early_exit.png")
    print(f"wrote early_exit.json and early_exit.png to {args.out}")
    return report


if __name__ == "__main__":
    main()
