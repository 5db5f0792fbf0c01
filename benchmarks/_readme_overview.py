"""The README's first table: what to do for whom, and what that was measured to give."""
from __future__ import annotations

import json
from pathlib import Path

__all__ = ["overview_rows"]


def _rows(results: Path, name: str) -> list[dict]:
    return [row for row in json.loads((results / f"{name}.json").read_text())["rows"] if "failed" not in row]


def _range(values) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}x to {high:.2f}x"


def overview_rows(results: Path) -> tuple[list[str], list[list[str]]]:
    """Peak and time of a training step, of those of the framework by itself."""
    step = [r for r in _rows(results, "training_step_cpu") if r["method"] == "recompute balanced"]
    time = {r["method"]: r for r in _rows(results, "unroll_cpu") if r["network"] == "conv_leaky"}
    shared = {r["variant"]: r for r in _rows(results, "sharing_cpu") if r["network"] == "resnet19"}
    deepest = max(r["blocks"] for r in _rows(results, "reversible_depth_cpu"))
    deep = next(r for r in _rows(results, "reversible_depth_cpu")
                if r["blocks"] == deepest and r["method"] == "reversible, fused")
    neurons = {r["network"]: r for r in _rows(results, "reversible_memory")}["vgg19"]
    columns = {(str(r["channels"]), r["method"]): r for r in _rows(results, "t_revsnn_memory")}
    small = "(64, 128, 256, 384)"
    zoo = [r["peak of native's"] for r in _rows(results, "zoo_cpu") if r["method"] == "recompute memory"]
    leaves = json.loads((results / "early_exit.json").read_text())["summary"][0]
    early = f"{leaves['steps saved']:.0%} of the steps saved, {100 * leaves['lost']:.2f} points lost"
    peak, took, plain, longer = "peak of native's", "time of native's", "peak of plain's", "time of plain's"
    memopt, slower = "peak of memopt's", "time of memopt's"
    lean, fast = shared["[L+C#2], recompute"], shared["[L+C#2], graph, recompute"]
    reverse, merged = time["reverse"], time["reverse, 8 at once"]
    image = columns[small, "reversible"]["MB per image"] / columns[small, "plain autograd"]["MB per image"]
    return ["you have", "you write", "peak", "time", "page"], [
        ["a SpikingJelly network in multi-step mode", '`sj_memext.retrofit(net, "recompute")`',
         f"{_range([r[peak] for r in step])} (of memopt's: {_range([r[memopt] for r in step])})",
         f"{_range([r[took] for r in step])} (of memopt's: {_range([r[slower] for r in step])})",
         "[whole networks](docs/guide/whole_networks.md)"],
        [f"a loop over time, snnTorch or step mode 's' (T = {reverse['T']})", "`unroll(net, x_seq)`",
         f"{reverse[plain]:.3f}x; 8 steps at once: {merged[plain]:.3f}x",
         f"{reverse[longer]:.2f}x; {merged[longer]:.2f}x",
         "[through time](docs/guide/through_time.md)"],
        ["somebody else's repository", "`memext run train.py`, or `import sj_memext.compat`", _range(zoo) +
         ' (`recompute`, `prefer="memory"`)', "", "[programs](docs/guide/programs.md)"],
        ["a ResNet19, and may share membranes (EfficientLIF-Net)",
         '`share(net, "auto", channels=2)`, `retrofit(net, "recompute")`',
         f"{lean[peak]:.2f}x; {fast[peak]:.2f}x with `prefer='graph'`", f"{lean[took]:.2f}x; {fast[took]:.2f}x",
         "[shared membranes](docs/guide/shared_membranes.md)"],
        [f"{deepest} blocks, and may make them reversible", "`ReversibleSequence(blocks)`",
         f"{deep[plain]:.3f}x, the same at any depth", f"{deep[longer]:.2f}x",
         "[reversible](docs/guide/reversible.md)"],
        ["neurons whose memory must go (RevSNN)", '`retrofit(net, "reversible")`',
         f"1/{neurons['times less neuron memory']:.0f} of what neurons keep (planned, vgg19, T = {neurons['T']})", "",
         "[reversible](docs/guide/reversible.md)"],
        ["images, and trains from the start (T-RevSNN)", "`model.t_revsnn(...)`",
         f"{image:.2f}x per image of plain autograd (counted without the memory)", "",
         "[reversible](docs/guide/reversible.md)"],
        ["a trained network, and wonders what it costs on hardware", "`memext energy`, `early_exit(net)`",
         f"MNIST, T = {leaves['T']}: {early}", "", "[hardware](docs/guide/hardware.md)"],
        ["conversion, NIR, monitors, events", "nothing else", "", "", "[tools](docs/guide/tools.md)"],
    ]
