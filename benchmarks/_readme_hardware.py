"""Tables of early exit and of crossbars, from their result files."""
from __future__ import annotations

import json
from pathlib import Path

__all__ = ["crossbar_rows", "exit_rows"]


def exit_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Accuracy and steps with and without early exit, and what the hardware models make of it; means over seeds."""
    data, lines = json.loads(path.read_text()), []
    for row in data["summary"]:
        energy = row["energy"]
        share = lambda model, figure, energy=energy: f"{energy[model][figure]:.2f}x"  # noqa: E731
        lines.append([f"T = {row['T']}, loss of {row['loss']} step{'s' if row['loss'] == 'every' else ''}, "
                      f"{row['seeds']} seed{'s' * (row['seeds'] > 1)}",
                      f"{row['accuracy, all steps']:.2%}", f"{row['accuracy']:.2%}", f"{row['mean steps']:.2f}",
                      f"{row['steps saved']:.0%}", share("table2", "of all steps"), share("sata", "of all steps"),
                      share("spikesim", "of all steps"), share("spikesim", "EDP of all steps")])
    return ["MNIST", "accuracy, all steps", "with early exit", "mean steps", "steps saved", "energy, Table II",
            "energy, SATA", "energy, SpikeSim", "EDP per sample, SpikeSim"], lines


def crossbar_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Accuracy with all non-idealities at once and with each, without and with the two mitigations."""
    data = json.loads(path.read_text())
    found = {(row["strength"], row["variant"]): row for row in data["summary"]}
    variants = ("noise", "+encoding", "+adaptation", "both")
    of = lambda key: f"{found[key]['accuracy']:.1%}" if key in found else "-"  # noqa: E731
    lines = [[f"{said}, {found['-', kind]['seeds']} seeds", of(("-", kind)), "", "", ""]
             for kind, said in (("clean", "float weights"), ("quantised", f"{data['bits']}-bit weights"))]
    for strength, options in data["strengths"].items():
        said = ", ".join(f"{name}={value:g}" for name, value in options.items()) if strength == "all" else strength
        seeds = {found[strength, v]["seeds"] for v in variants if (strength, v) in found}
        if seeds:
            lines.append([f"{said}, {max(seeds)} seeds", *(of((strength, v)) for v in variants)])
    return [f"MNIST, T = {data['T']}, crossbars of {data['size']}", "test accuracy", "with weight encoding",
            "with batch-norm adaptation", "with both"], lines
