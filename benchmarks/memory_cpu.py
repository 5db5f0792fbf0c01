"""How the peak memory of a training step grows with the number of time steps, the depth and the batch: table and plot.

    python -m benchmarks.memory_cpu [--threads 2] [--quick]

Spiking VGG with batch norm at 32x32; peak, floor and bytes kept as in benchmarks.training_step_cpu.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks._measure import results_folder, save, table
from benchmarks._networks import TINY, VGG11, VGG13, VGG16, Network, floor
from benchmarks._resident import RETURNS_BLOCKS
from benchmarks._training import NATIVE, rivals
from benchmarks._worker import Case, Here, Worker
from benchmarks.training_step_cpu import memory_columns

METHODS = rivals(VGG11)
T, BATCH = 4, 16  # what stays fixed while another is varied
GROWTH = {  # what grows -> (its value, network)
    "T": [(steps, VGG11.at(steps, BATCH)) for steps in (4, 8, 16, 32)],
    "layers": [(layers, network.at(T, BATCH)) for layers, network in ((8, VGG11), (10, VGG13), (13, VGG16))],
    "batch": [(batch, VGG11.at(T, batch)) for batch in (8, 16, 32)],
}
LABELS = {"T": f"time steps (VGG-11, batch {BATCH})", "batch": f"batch (VGG-11, T = {T})",
          "layers": f"convolutions (VGG-11, 13, 16; T = {T}, batch {BATCH})"}
QUICK = {"T": [(2, TINY[0]), (4, TINY[0].at(4))], "layers": [(2, TINY[0])],
         "batch": [(2, TINY[0]), (4, TINY[0].at(batch=4))]}


def measure(growth: dict[str, list[tuple[int, Network]]], threads: int, start) -> list[dict]:
    """A row per point and method. Points that belong to two sweeps are measured once."""
    rows, known = [], {}
    for against, points in growth.items():
        for value, network in points:
            least = floor(network)
            for method in METHODS:
                case = Case(network.name, method, *network.shape[:2], threads)
                if case not in known:
                    print(f"{network.name}, T = {case.steps}, batch {case.batch}, {method}", flush=True)
                    try:
                        known[case] = memory_columns(start, case, least)
                    except Exception as problem:
                        known[case] = {"failed": str(problem)}
                rows.append({"against": against, "value": value, "network": network.name, "T": case.steps,
                             "batch": case.batch, "method": method, **known[case]})
    return rows


def slopes(rows: list[dict]) -> list[dict]:
    """MiB more per time step, layer and sample, from the first point of a sweep to its last; one row per method."""
    found = []
    for method in METHODS:
        row: dict[str, object] = {"method": method}
        for against in GROWTH:
            line = [r for r in rows if (r["against"], r["method"]) == (against, method) and "failed" not in r]
            if len(line) > 1:
                first, last = line[0], line[-1]
                row[f"MiB per {against}"] = (last["peak, MiB"] - first["peak, MiB"]) / (last["value"] - first["value"])
        found.append(row)
    return found


def plot(rows: list[dict], path: Path) -> None:
    """One panel per sweep, one line per method, the floor dashed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(GROWTH), figsize=(4.5 * len(GROWTH), 4.2), layout="constrained")
    for panel, against in zip(panels, GROWTH):
        sweep = [row for row in rows if row["against"] == against and "failed" not in row]
        for method in METHODS:
            line = [row for row in sweep if row["method"] == method]
            panel.plot([row["value"] for row in line], [row["peak, MiB"] for row in line], marker=".", label=method,
                       color="black" if method == NATIVE else None)
        least = {row["value"]: row["floor, MiB"] - row["parameters, MiB"] for row in sweep}
        panel.plot(list(least), list(least.values()), "--", color="grey", label="floor")
        panel.set(xlabel=LABELS[against], xticks=list(least), ylim=(0, None))
    panels[0].set_ylabel("peak over base, MiB")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny networks in one process: does it run?")
    args = parser.parse_args(argv)
    rows = measure(QUICK if args.quick else GROWTH, args.threads, Here if args.quick else Worker)
    grown = slopes(rows)
    path = save("memory_cpu", rows, slopes=grown, threads=args.threads, quick=args.quick, allocator=RETURNS_BLOCKS)
    table("peak of a training step", rows, ["against", "value", "network", "T", "batch", "method", "peak, MiB",
                                            "floor, MiB", "of the floor", "kept, B"])
    table("growth of the peak", grown, ["method", *(f"MiB per {against}" for against in GROWTH)])
    try:
        plot(rows, results_folder() / "memory_cpu.png")
        print("written:", path.name, "and memory_cpu.png")
    except ImportError as problem:
        print("written:", path.name, f"(no plot: {problem})")


if __name__ == "__main__":
    main()
