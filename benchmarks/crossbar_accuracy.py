"""Test accuracy on non-ideal crossbars, and what two mitigations bring back.

    python -m benchmarks.crossbar_accuracy --data DIR [--seeds 3] [--test 1000] [--threads 1] [--quick]

DIR holds MNIST/raw/ (the four IDX files). As in Fig. 6(b) of "Are SNNs Truly Energy-efficient?": a small network (three
convolutions with batch norm and LIF, T = 4, the first convolution digital) is trained for each seed, without regard to
crossbars. Its weights are written to 64 x 64 crossbars with 4 bits: with negative weights in two's complement
(`noise`), with the encoding that needs fewer strong cells (`+encoding`), with batch norm adapted to what the crossbars
give (`+adaptation`: on training images, without labels), and with both. `signed top` and `pair` are other encodings.
The seed also draws the devices and their noise. Trained weights stay in the folder MEMEXT_CACHE, or a temporary one.
"""
from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import _crossbar_net as nets
from benchmarks._measure import save, table
from benchmarks._sharing_data import Split, images
from shared_core.hardware import Crossbar, adapt_batch_norm

TRAINING = 30000  # images; a tenth of them is not used
ADAPTATION = 512
NAIVE, ENCODED = "twos-complement", "shifted"
# variant: (encoding, whether batch norm is adapted)
VARIANTS = {"noise": (NAIVE, False), "+encoding": (ENCODED, False), "+adaptation": (NAIVE, True),
            "both": (ENCODED, True)}
MORE = {"signed top": ("signed-top", False), "pair": ("pair", False)}
# Together: the one wire resistance that stands in the published tool, deviations of a tenth, 6-bit converters.
ALL = {"wire_ohm": 5.0, "read_noise": 0.1, "variation": 0.1, "adc_bits": 6}
MAIN = "all"
# No batch norm stands behind the classifier, so adaptation cannot repair what that loses: what it does without it.
HEADLESS = "all, classifier digital"
STRENGTHS = {MAIN: ALL, HEADLESS: {**ALL, "linear": False},
             "wire 1 ohm": {"wire_ohm": 1.0}, "wire 2 ohm": {"wire_ohm": 2.0}, "wire 5 ohm": {"wire_ohm": 5.0},
             "read noise 0.1": {"read_noise": 0.1}, "read noise 0.3": {"read_noise": 0.3},
             "variation 0.1": {"variation": 0.1}, "variation 0.3": {"variation": 0.3}, "ADC 4 bits": {"adc_bits": 4}}


def measured(net, split: Split, crossbar: Crossbar, images: int, test: int) -> dict:
    """Accuracy of a copy of `net` on these crossbars. images: for adaptation, 0 without."""
    start = time.perf_counter()
    net = crossbar.convert(copy.deepcopy(net))
    if images:
        adapt_batch_norm(net, nets.batches(split.train[:images]), run=nets.run)
    found = nets.accuracy(net, split.test[:test])
    layers = [layer for layer in Crossbar.report(net).layers if layer.crossbars is not None]
    return {"accuracy": found, "crossbars": sum(layer.crossbars for layer in layers),
            "off share": statistics.mean(layer.off_share for layer in layers), "s": time.perf_counter() - start}


def cases(strengths: dict[str, dict]) -> list[tuple[str, str, Crossbar, bool]]:
    """(strength, variant, crossbars without a seed, adapted)."""
    return [(strength, variant, Crossbar(encoding=encoding, **options), adapted)
            for strength, options in strengths.items()
            for variant, (encoding, adapted) in (VARIANTS | MORE).items()
            if (variant in VARIANTS or strength == MAIN) and (encoding == NAIVE or strength != HEADLESS)]


def summaries(rows: list[dict]) -> list[dict]:
    """Over seeds: mean, lowest and highest accuracy, mean distance to the quantised network of the same seed."""
    quantised = {row["seed"]: row["accuracy"] for row in rows if row["variant"] == "quantised"}
    found = []
    for strength, variant in dict.fromkeys((row["strength"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["strength"], row["variant"]) == (strength, variant)]
        values = [row["accuracy"] for row in mine]
        found.append({"strength": strength, "variant": variant, "seeds": len(values),
                      "accuracy": statistics.mean(values), "lowest": min(values), "highest": max(values),
                      "to quantised": statistics.mean(row["accuracy"] - quantised[row["seed"]] for row in mine),
                      **{key: statistics.mean(row[key] for row in mine) for key in ("off share", "crossbars")
                         if key in mine[0]}})
    return found


def verdicts(rows: list[dict]) -> list[dict]:
    """The order of Fig. 6(b): noise costs, encoding brings back, adaptation brings back the rest. In every seed?"""
    of = {(row["strength"], row["variant"], row["seed"]): row["accuracy"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    found = []
    for strength in dict.fromkeys(row["strength"] for row in rows if row["variant"] in VARIANTS):
        for less, more in (("noise", "quantised"), ("noise", "+encoding"), ("noise", "+adaptation"),
                           ("+encoding", "both"), ("+adaptation", "both")):
            where = "-" if more == "quantised" else strength
            if any((where, more, seed) not in of or (strength, less, seed) not in of for seed in seeds):
                continue
            gains = [of[where, more, seed] - of[strength, less, seed] for seed in seeds]
            found.append({"strength": strength, "less": less, "more": more, "gain": statistics.mean(gains),
                          "least": min(gains), "in all seeds": min(gains) > 0})
    return found


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    rows: list[dict] = []
    try:
        for seed in range(args.seeds):
            split = images(args.data, "mnist", seed, 640 if args.quick else TRAINING)
            net, seconds = nets.trained(split, seed, 1, (4, 4, 4) if args.quick else nets.WIDTHS)
            print(f"seed {seed}: {'weights found' if seconds is None else f'trained in {seconds:.0f} s'}", flush=True)
            whole = {"strength": "-", "seed": seed, "training, s": seconds}
            rows += [{**whole, "variant": "clean", "accuracy": nets.accuracy(net, split.test[:args.test])},
                     {**whole, "variant": "quantised", **measured(net, split, Crossbar(), 0, args.test)}]
            for strength, variant, crossbar, adapted in cases(
                    {MAIN: ALL, "wire 5 ohm": STRENGTHS["wire 5 ohm"]} if args.quick else STRENGTHS):
                crossbar = replace(crossbar, seed=seed)
                rows.append({"strength": strength, "variant": variant, "seed": seed,
                             **measured(net, split, crossbar, adapted * (64 if args.quick else ADAPTATION), args.test)})
                print(f"  {strength}, {variant}: {rows[-1]['accuracy']:.4f} ({rows[-1]['s']:.0f} s)", flush=True)
            save("crossbar_accuracy", rows, summary=summaries(rows), asked=verdicts(rows), strengths=STRENGTHS,
                 T=nets.T, widths=nets.WIDTHS, bits=Crossbar().bits, size=Crossbar().size, test=args.test,
                 adaptation=ADAPTATION, threads=args.threads, quick=args.quick)
    finally:
        torch.set_num_threads(before)
    table("test accuracy", summaries(rows), ["strength", "variant", "seeds", "accuracy", "lowest", "highest",
                                             "to quantised", "off share"])
    table("the order of Fig. 6(b)", verdicts(rows), ["strength", "less", "more", "gain", "least", "in all seeds"])
    print("written: crossbar_accuracy.json")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny network, few images: does it run?")
    args = parser.parse_args(argv)
    if min(args.seeds, args.test, args.threads) < 1:
        parser.error("--seeds, --test and --threads must be positive")
    if not (args.data / "MNIST" / "raw").is_dir():
        parser.error(f"{args.data / 'MNIST' / 'raw'} is missing; --data DIR needs MNIST/raw with the four IDX files")
    return args


if __name__ == "__main__":
    main()
