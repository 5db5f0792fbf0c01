"""Training memory of T-RevSNN: per image at 224x224 beside the paper's Table 2, and against T beside its Table 4.

    python -m benchmarks.t_revsnn_memory [--quick] [--time] [--threads 2]

Counted on fake tensors (shapes without memory), forward, loss and backward under float16 autocast, so no GPU is needed
and no noise enters: peak = highest sum of live tensors over weights and batch. Per image = difference of two batch
sizes, so weights and their gradients drop out; "at batch 64" divides the whole peak, gradients included.
--time also runs real training steps of a small net on the CPU: reversible against plain autograd.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks._measure import in_turns, quantiles, ratio, results_folder, save, table
from benchmarks._t_revsnn_counted import counted
from sj_memext.model import t_revsnn

SMALL, LARGE = (64, 128, 256, 384), (96, 192, 384, 512)
TABLE_2 = {SMALL: 57.5, LARGE: 85.7}              # MB an image, float16
TABLE_4 = {2: 75.6, 4: 57.5, 8: 49.8, 16: 42.4}   # the same against T, parameters in all fixed
STEPS = tuple(TABLE_4)
MB = 1e6


def per_image(size: int = 224, batches: tuple[int, int] = (32, 64), channels=SMALL, **options) -> dict:
    low, high = (counted(lambda: t_revsnn(channels, **options), batch, size) for batch in batches)
    many = batches[1] - batches[0]
    image, kept = (high[0] - low[0]) / many, (high[1] - low[1]) / many
    return {"MB per image": image / MB, "kept, MB per image": kept / MB,
            "at batch 64, MB per image": (low[0] + (64 - batches[0]) * image) / 64 / MB}


def states(channels, size: int) -> int:
    """Turned-on neurons of an image: the stages' states in one column."""
    sides = (size // 4, size // 8, size // 16, size // 16)
    return sum(c * side * side for c, side in zip(channels, sides))


def parameters_of(channels, steps: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in t_revsnn(channels, T=steps).parameters())


def of_the_size(steps: int, parameters: int) -> tuple[int, ...]:
    """Channels (c, 2c, 4c, 6c), T dividing c, whose net of T columns is nearest to this number of parameters."""
    def off(c: int) -> int:
        return abs(parameters_of((c, 2 * c, 4 * c, 6 * c), steps) - parameters)

    guess = 64 * (4 / steps) ** 0.5  # parameters grow as T c^2
    below = max(steps, int(guess) // steps * steps)
    c = min((below, below + steps), key=off)
    return c, 2 * c, 4 * c, 6 * c


def table_2(size: int) -> list[dict]:
    rows = []
    for channels, paper in TABLE_2.items():
        for reversible in (True, False):
            print(f"table 2, {channels}, {'reversible' if reversible else 'plain autograd'}", flush=True)
            found = per_image(size, channels=channels, reversible=reversible)
            rows.append({"channels": str(channels), "method": "reversible" if reversible else "plain autograd", **found,
                         "paper's": paper, "met": found["at batch 64, MB per image"] <= paper if reversible else None})
    return rows


def growth(size: int, steps=STEPS) -> tuple[list[dict], list[dict]]:
    """(rows over T with the layout of a column fixed, one row of slopes per method)"""
    rows, slopes = [], []
    n = states(SMALL, size)
    for name, options in (("reversible", {}), ("plain autograd", {"reversible": False})):
        line = []
        for T in steps:
            print(f"T = {T}, {name}", flush=True)
            found = per_image(size, T=T, **options)
            with torch.device("meta"):
                net = t_revsnn(SMALL, T=T, **options)
            kept = 0 if "reversible" in options else sum(
                len(c) * (size // side) ** 2 * 4 for plan, side in zip(net_plan(net), (4, 8, 16, 16)) for c in plan)
            line.append({"method": name, "T": T, **found, "of which states kept, MB": kept / MB})
        rows += line
        first, last = line[1 if len(line) > 2 else 0], line[-1]  # T = 2 has no state on both sides of a column yet
        columns = last["T"] - first["T"]

        def per_state(figure: str, first=first, last=last, columns=columns) -> float:
            return (last[figure] - first[figure]) * MB / columns / n
        anchors = per_state("of which states kept, MB")
        peak_slope, kept_slope = per_state("MB per image"), per_state("kept, MB per image")
        # Beyond what is kept: every column adds its group to the gradient of the encoded image (float16), once full.
        image = SMALL[0] * (size // 4) ** 2 * 2
        slopes.append({"method": name, "peak, B per state and column": peak_slope,
                       "kept, B per state and column": kept_slope, "of which states kept": anchors,
                       "allowed": None if name == "plain autograd" else 0.125 + anchors,
                       "peak beyond kept, of one encoded image's gradient":
                           (peak_slope - kept_slope) * columns * n / image})
    return rows, slopes


def net_plan(net) -> list[list[list[int]]]:
    """Columns.plan of a net without values: all decays where they start."""
    from shared_core.reversible._column_state import kept_channels
    columns = net.columns
    T = len(columns.stages)
    allowed = 1e-5 if columns.tolerance is None else columns.tolerance
    return [kept_channels(torch.full((T, c), columns.decay), allowed, torch.finfo(torch.float32).eps)
            for c in columns.channels]


def table_4(size: int, steps=STEPS) -> list[dict]:
    rows = []
    for T in steps:
        channels = of_the_size(T, parameters_of(SMALL, 4))
        print(f"table 4, T = {T}, {channels}", flush=True)
        rows.append({"T": T, "channels": str(channels), "parameters, M": parameters_of(channels, T) / 1e6,
                     **per_image(size, channels=channels, T=T), "paper's": TABLE_4[T]})
    return rows


def times(threads: int, rounds: int) -> list[dict]:
    """Seconds of a training step of a small net, and how many times longer the reversible one takes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = t_revsnn((16, 32, 64, 96), 10, variant="cifar").to(memory_format=torch.channels_last)
    x, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))

    def step(reversible: bool) -> None:
        net.columns.reversible = reversible
        net.zero_grad()
        cross_entropy(net(x), labels).backward()

    seconds = in_turns({"reversible": lambda: step(True), "plain autograd": lambda: step(False)}, rounds)
    return [{"method": name, **quantiles(found), "times plain's": ratio(seconds, name, "plain autograd")["median"]}
            for name, found in seconds.items()]


def plot(grown: list[dict], fixed: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for method in dict.fromkeys(row["method"] for row in grown):
        line = [row for row in grown if row["method"] == method]
        panels[0].plot([row["T"] for row in line], [row["MB per image"] for row in line], marker=".", label=method,
                       color="black" if method == "plain autograd" else None)
    panels[0].set(title=f"channels {SMALL} in every column", ylabel="MB per image, float16, 224x224", yscale="log")
    panels[1].plot([row["T"] for row in fixed], [row["MB per image"] for row in fixed], marker=".", label="reversible")
    panels[1].plot(list(TABLE_4), list(TABLE_4.values()), "--", color="grey", marker=".", label="the paper's Table 4")
    panels[1].set(title="15.2 M parameters in all", ylim=(0, None))
    for panel in panels:
        panel.set(xlabel="T", xticks=[row["T"] for row in fixed])
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32x32, T = 2 and 4: does it run?")
    parser.add_argument("--time", action="store_true", help="also real steps on the CPU")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    size, steps = (32, (2, 4)) if args.quick else (224, STEPS)
    second, (grown, slopes), fixed = table_2(size), growth(size, steps), table_4(size, steps)
    before = torch.get_num_threads()
    timed = times(args.threads, 2 if args.quick else 7) if args.time else []
    torch.set_num_threads(before)
    path = save("t_revsnn_memory", second, growth=grown, slopes=slopes, table_4=fixed, times=timed, size=size,
                threads=args.threads, quick=args.quick)
    table("training memory beside Table 2", second, ["channels", "method", "MB per image", "at batch 64, MB per image",
                                                     "kept, MB per image", "paper's", "met"])
    table("against T, every column alike", grown, ["method", "T", "MB per image", "kept, MB per image",
                                                   "of which states kept, MB"])
    table("slopes", slopes, list(slopes[0]))
    table("against T, parameters fixed (Table 4)", fixed, ["T", "channels", "parameters, M", "MB per image", "paper's"])
    table("a training step on the CPU", timed, ["method", "median", "p20", "p80", "times plain's"])
    try:
        plot(grown, fixed, results_folder() / "t_revsnn_memory.png")
        print("written:", path.name, "and t_revsnn_memory.png")
    except ImportError as problem:
        print("written:", path.name, f"(no plot: {problem})")


if __name__ == "__main__":
    main()
