"""The tables of reversible neurons, from their result files."""
from __future__ import annotations

import json
from pathlib import Path

__all__ = ["both_rows", "memory_rows", "neuron_rows", "training_rows"]


def memory_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """RevSNN's Fig. 5: one line per network, at its most time steps; what is asked of it in brackets."""
    data = json.loads(path.read_text())
    asked = {(a["network"], a["T"]): a for a in data["asked"]}
    last = {row["network"]: row for row in data["rows"] if "failed" not in row}
    lines = []
    for row in last.values():
        bound = asked.get((row["network"], row["T"]))
        wanted = "" if bound is None else f" (at least {bound['asked']}{'' if bound['met'] else ': NO'})"
        lines.append([f"{row['network']}, T={row['T']}, batch {row['batch']}", f"{row['normal neurons, MiB']:.0f} MiB",
                      f"{row['reversible neurons, MiB']:.0f} MiB", f"{row['times less neuron memory']:.1f}x{wanted}",
                      *("" if row[f"{kind} peak, MiB"] is None else f"{row[f'{kind} peak, MiB']:.0f} MiB"
                        for kind in ("normal", "reversible"))])
    return ["one training step, predicted", "normal neurons", "reversible neurons", "less", "peak, normal",
            "peak, reversible"], lines


def neuron_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Backward times; what is asked of ours in brackets."""
    data = json.loads(path.read_text())
    asked = {(tuple(a["shape"]), a["threads"], a["neuron"]): a for a in data["asked"]}
    lines = []
    for row in data["rows"]:
        bound = asked.get((tuple(row["shape"]), row["threads"], row["neuron"]))
        wanted = "" if bound is None else f" (at most {bound['asked']}x{'' if bound['met'] else ': NO'})"
        low, high = row["backward, p20-p80"]
        share = row["backward of conventional's"]
        lines.append([f"{'x'.join(map(str, row['shape']))}, {row['neuron']}", str(row["threads"]),
                      f"{row['forward, ns']:.2f}", f"{row['backward, ns']:.2f} ({low:.2f} to {high:.2f})",
                      f"{share:.2f}x{wanted}", f"{row['kept, B']:.2f}"])
    return ["reversible neuron, ns per element and step", "threads", "forward", "backward",
            "backward of the conventional one's", "kept, B"], lines


def training_rows(paths: list[Path]) -> tuple[list[str], list[list[str]]]:
    """T-RevSNN on real data: one line per task."""
    lines = []
    for path in paths:
        data = json.loads(path.read_text())
        row = data["rows"][0]
        epochs = row["steps"] * data["batch"] / data["training_samples"]
        lines.append([f"{row['task']}, T = {data['T']}", f"{row['parameters']}", f"{epochs:.1f}",
                      f"{row['accuracy']:.2%}", f"{row['seconds'] / 60:.0f} min",
                      f"{row['share of states kept']:.0%}"])
    return ["T-RevSNN trained on", "parameters", "epochs", "test accuracy", "in", "states kept"], lines


def both_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """T-RevSNN with coupled blocks, reversible in neither, time, depth and both, beside the paper's Table 6."""
    data = json.loads(path.read_text())
    paper = {("time", row["blocks a stage"]): row["paper's"] for row in data["table_6"]
             if row["figure"] == "time over none"}
    lines = []
    share, apart = "MB per image, of none's", "gradients unlike none's"
    for row in data["rows"]:
        key = (row["reversible in"], row["blocks a stage"])
        theirs = f" (the paper's: {paper[key]:.2f}x)" if key in paper else ""
        lines.append([f"{row['blocks a stage']} blocks a stage, {row['reversible in']}", f"{row['MB per image']:.1f}",
                      f"{row[share]:.2f}x{theirs}", f"{row['kept, MB per image']:.1f}",
                      f"{row[apart]:.0e}"])
    return [f"reversible in, float16, {data['size']}x{data['size']}, MB per image", "peak", "of none's",
            "kept for backward", apart], lines
