"""The tables of shared membranes, from their result files."""
from __future__ import annotations

import json
from pathlib import Path

__all__ = ["activity_rows", "image_rows", "sharing_rows"]


def sharing_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Peak and time of shared membranes beside the network that shares nothing."""
    data, lines = json.loads(path.read_text()), []
    peak, time, stepped = "peak of native's", "time of native's", "time of time outermost's"
    for row in data["rows"]:
        start = [f"{row['network']}, {row['variant']}"]
        if "failed" in row:
            lines.append([*start, row["failed"], *[""] * 5])
            continue
        lines.append([*start, f"{row['membranes, MiB']:.1f}", f"{row['peak, MiB']:.0f} MiB",
                      f"{row[peak]:.2f}x", f"{row['step, ms']:.0f} ms",
                      f"{row[time]:.2f}x", f"{row[stepped]:.2f}x"])
    return [f"one training step, T = {data['shape'][0]}, batch {data['shape'][1]}, threads: {data['threads']}",
            "membranes in the forward pass, MiB", "peak", "of native's", "time", "of native's",
            "of time outermost's"], lines


def activity_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Table VI's form: per split and reset, the mean over seeds, and in brackets the points to native of its kind."""
    data = json.loads(path.read_text())
    columns = list(dict.fromkeys((row["split"], row["reset"]) for row in data["summary"]))
    seeds = max(row["seeds"] for row in data["summary"])
    found = {(row["split"], row["reset"], row["variant"]): row for row in data["summary"] if row["seeds"] == seeds}
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in data["summary"]):
        cells = [found.get((*column, variant)) for column in columns]
        lines.append([variant, *("-" if row is None else f"{row['accuracy']:.2%}{_points(row)}" for row in cells)])
    return [f"human activities, T = {data['T']}, {seeds} seeds (-: out of time)",
            *(f"{split}, {reset} reset" for split, reset in columns)], lines


def image_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """One seed: accuracy, in brackets the points to native of its kind, and what the training was."""
    data = json.loads(path.read_text())
    steps = max(row["training steps"] for row in data["rows"])
    epochs = steps * data["batch"] / data["parts"][0]
    title = (f"{ {'mnist': 'MNIST', 'cifar10': 'CIFAR-10'}[data['task']]}, VGG16 {tuple(data['widths'])}, "
             f"T = {data['T']}, {epochs:.1f} epochs")
    return [title, "test accuracy", "spikes per neuron and step", "training step"], [
        [row["variant"], f"{row['accuracy']:.2%}{_points(row)}", f"{row['spike rate']:.3f}",
         f"{row['step, ms']:.0f} ms"] for row in data["summary"]]


def _points(row: dict) -> str:
    return f" ({100 * row['to native of its kind']:+.2f})" if row["variant"].startswith("[") else ""
