"""Writes the tables of the README and of docs/guide/ from the committed result files. A test fails when they differ.

    python -m benchmarks.readme            # after new results are in benchmarks/results/
"""
from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks._readme_hardware import crossbar_rows, exit_rows
from benchmarks._readme_overview import overview_rows
from benchmarks._readme_reversible import both_rows, memory_rows, neuron_rows, training_rows
from benchmarks._readme_sharing import activity_rows, image_rows, sharing_rows
from benchmarks._readme_zoo import zoo_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md")))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def demo() -> str:
    rows = json.loads((RESULTS / "demo.json").read_text())
    native = {row["framework"]: row for row in rows if row["method"] == "native"}
    table = []
    for row in rows:
        first = native[row["framework"]]
        table.append([f"{row['framework']}, {row['method']}",
                      f"{row['peak_mib']:.0f} MiB ({row['peak_mib'] / first['peak_mib']:.2f}x)",
                      f"{row['saved_mib']:.0f} MiB ({row['saved_mib'] / first['saved_mib']:.2f}x)",
                      f"{row['step_s'] * 1e3:.0f} ms ({row['step_s'] / first['step_s']:.2f}x)",
                      f"{row['accuracy']:.2%}", "yes" if row["spikes_identical"] else "NO"])
    return markdown(["MNIST, one epoch", "peak over base", "saved for backward", "time per step", "test accuracy",
                     "spikes identical"], table)


def neurons_cpu() -> str:
    table = []
    for name, allocator in (("neurons_cpu", "default"), ("neurons_cpu_reuse", "reuses blocks")):
        for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]:
            if row["surrogate"] in ("Sigmoid", "ATan", "default (atan)"):
                table.append([f"{row['layer']}, {row['surrogate']}", str(row["threads"]), allocator,
                              f"{row['framework, ns']:.2f}", f"{row['ours, ns']:.2f}", f"{row['times faster']:.1f}x",
                              f"{row['same bytes, memory there, ns']:.2f}"])
    return markdown(["forward + backward, ns per element and step", "threads", "allocator", "framework", "ours",
                     "faster", "moving the same bytes"], table)


def saved_bytes() -> str:
    rows = json.loads((RESULTS / "saved_bytes.json").read_text())["rows"]
    table = [[f"{row['layer']}, {row['dtype']}", str(row["T"]), f"{row['framework, B']:.2f}", f"{row['ours, B']:.2f}"]
             for row in rows]
    return markdown(["bytes kept for the backward pass, per element and step", "T", "framework", "ours"], table)


def training_step_cpu() -> str:
    """Peak and time of every method, with what was asked of it in brackets, and NO where it is not met."""
    data = json.loads((RESULTS / "training_step_cpu.json").read_text())
    asked = {(v["network"], v["T"], v["method"], v["figure"]): f" ({v['asked']}{'' if v['met'] else ': NO'})"
             for v in data["asked"] if v["met"] is not None}
    table = []
    for row in data["rows"]:
        start = [f"{row['network']}, T={row['T']}, {row['method']}"]
        if "failed" in row:
            table.append([*start, row["failed"], *[""] * 7])
            continue

        def of(figure, row=row):
            if figure not in row:
                return ""
            return f"{row[figure]:.2f}x" + asked.get((row["network"], row["T"], row["method"], figure), "")

        table.append([*start, f"{row['peak, MiB']:.0f} MiB", of("peak of native's"), of("peak of memopt's"),
                      f"{row['of the floor']:.2f}x", f"{row['step, ms']:.0f} ms", of("time of native's"),
                      of("time of memopt's"), f"{row['kept, B']:.2f}"])
    return markdown([f"one training step, batch 16, {data['threads']} threads (asked)", "peak over base", "of native's",
                     "of memopt's", "of the floor", "time", "of native's", "of memopt's", "kept, B per spike"], table)


def memory_cpu() -> str:
    """Peaks in MiB, a row per point and a column per method."""
    rows = json.loads((RESULTS / "memory_cpu.json").read_text())["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    points: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        points.setdefault((row["network"], row["T"], row["batch"]), {})[row["method"]] = row
    table = []
    for (network, steps, batch), found in points.items():
        floors = [row["floor, MiB"] - row["parameters, MiB"] for row in found.values() if "failed" not in row]
        table.append([f"{network}, T={steps}, batch {batch}", *(f"{least:.0f}" for least in floors[:1]),
                      *(f"{found[m]['peak, MiB']:.0f}" if "failed" not in found[m] else "failed" for m in methods)])
    return markdown(["peak over base, MiB", "floor over base", *methods], table)


def unroll_cpu() -> str:
    """Peak and time of every method, with what was asked of it in brackets, and NO where it is not met."""
    data = json.loads((RESULTS / "unroll_cpu.json").read_text())
    asked = {(v["network"], v["T"], v["method"], v["figure"]): f" ({v['asked']}{'' if v['met'] else ': NO'})"
             for v in data["asked"] if v["met"] is not None}
    table = []
    for row in data["rows"]:
        start = [f"{row['network']}, T={row['T']}, {row['method']}"]
        if "failed" in row:
            table.append([*start, row["failed"], *[""] * 5])
            continue

        def of(figure, form, row=row):
            if figure not in row:
                return ""
            return f"{row[figure]:{form}}" + asked.get((row["network"], row["T"], row["method"], figure), "")

        table.append([*start, of("peak, MiB", ".1f"), of("peak of plain's", ".3f"), of("resident, MiB", ".1f"),
                      of("kept, B", ".2f"), of("time of plain's", ".2f"), of("gradients unlike plain's", ".0e")])
    return markdown([f"one training step through time, {data['threads']} threads (asked)", "peak, MiB", "of plain's",
                     "resident, MiB", "kept, B per neuron and step", "time of plain's", "gradients unlike plain's"],
                    table)


def accuracy_unroll() -> str:
    data = json.loads((RESULTS / "accuracy_unroll.json").read_text())
    table = [[row["method"], f"{row['accuracy']:.2%}", f"{row['lowest']:.2%} to {row['highest']:.2%}",
              f"{row['to BPTT'] * 100:+.2f}", f"{row['weights apart, highest']:.1e}"] for row in data["summary"]]
    return markdown([f"human activities, T = {data['T']}, {data['summary'][0]['seeds']} seeds", "test accuracy",
                     "seeds", "points to BPTT", "weights apart from BPTT's"], table)


def sharing_cpu() -> str:
    return markdown(*sharing_rows(RESULTS / "sharing_cpu.json"))


def accuracy_sharing() -> str:
    return markdown(*activity_rows(RESULTS / "accuracy_sharing.json"))


def accuracy_sharing_mnist() -> str:
    return markdown(*image_rows(RESULTS / "accuracy_sharing_mnist.json"))


def accuracy_sharing_cifar10() -> str:
    return markdown(*image_rows(RESULTS / "accuracy_sharing_cifar10.json"))


def reversible_memory() -> str:
    return markdown(*memory_rows(RESULTS / "reversible_memory.json"))


def reversible_neuron_cpu() -> str:
    return markdown(*neuron_rows(RESULTS / "reversible_neuron_cpu.json"))


def reversible_depth_cpu() -> str:
    """Peak, time and gradients of a step against the number of reversible blocks."""
    data, table = json.loads((RESULTS / "reversible_depth_cpu.json").read_text()), []
    depths = sorted({row["blocks"] for row in data["rows"]})
    shown = {depths[0], depths[len(depths) // 2], depths[-1]}  # the others are in the plot
    for row in (row for row in data["rows"] if row["blocks"] in shown):
        start = [f"{row['blocks']} blocks, {row['method']}"]
        if "failed" in row:
            table.append([*start, row["failed"], *[""] * 6])
            continue
        of = lambda figure, form, row=row: f"{row[figure]:{form}}" if figure in row else ""  # noqa: E731
        table.append([*start, of("peak, MiB", ".1f"), of("peak of plain's", ".3f"), of("resident, MiB", ".1f"),
                      of("kept, MiB", ".2f"), of("step, ms", ".0f"), of("time of plain's", ".2f"),
                      of("gradients unlike plain's", ".0e")])
    return markdown([f"one training step in depth, {data['threads']} threads", "peak, MiB", "of plain's",
                     "resident, MiB", "kept, MiB", "ms", "time of plain's", "gradients unlike plain's"], table)


def t_revsnn_memory() -> str:
    """MB per image beside the paper's; then against T, every column alike, with the slope."""
    data = json.loads((RESULTS / "t_revsnn_memory.json").read_text())
    allowed = {row["method"]: row for row in data["slopes"]}
    table = []
    for row in data["rows"]:
        paper = row["paper's"]
        asked = "" if row["met"] is None else f" (at most {paper}{'' if row['met'] else ': NO'})"
        table.append([f"channels {row['channels']}, T=4, {row['method']}", f"{row['MB per image']:.1f}",
                      f"{row['at batch 64, MB per image']:.1f}{asked}", f"{row['kept, MB per image']:.1f}", ""])
    for row in data["growth"]:
        if row["T"] != 4:
            slope = allowed[row["method"]]
            table.append([f"channels (64, 128, 256, 384), T={row['T']}, {row['method']}", f"{row['MB per image']:.1f}",
                          f"{row['at batch 64, MB per image']:.1f}", f"{row['kept, MB per image']:.1f}",
                          f"{slope['peak, B per state and column']:.2f}"])
    return markdown(["one training step, float16, 224x224, MB per image", "peak",
                     "with gradients, 64 images (the paper's)", "kept for backward", "more per state and column, B"],
                    table)


def t_revsnn_both() -> str:
    return markdown(*both_rows(RESULTS / "t_revsnn_both.json"))


def accuracy_t_revsnn() -> str:
    return markdown(*training_rows([RESULTS / f"accuracy_t_revsnn_{task}.json" for task in T_REVSNN_TASKS]))


def early_exit() -> str:
    return markdown(*exit_rows(RESULTS / "early_exit.json"))


def crossbar_accuracy() -> str:
    return markdown(*crossbar_rows(RESULTS / "crossbar_accuracy.json"))


def zoo_cpu() -> str:
    return markdown(*zoo_rows(RESULTS / "zoo_cpu.json"))


def overview() -> str:
    header, rows = overview_rows(RESULTS)
    lines = [header, ["---"] * len(header), *rows]  # words, not numbers: left-aligned
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


T_REVSNN_TASKS = ("mnist", "cifar10", "events")
MAKERS = (demo, overview, neurons_cpu, saved_bytes, training_step_cpu, memory_cpu, unroll_cpu, accuracy_unroll,
          sharing_cpu, accuracy_sharing, accuracy_sharing_mnist, accuracy_sharing_cifar10, reversible_memory,
          reversible_neuron_cpu, reversible_depth_cpu, t_revsnn_memory, t_revsnn_both, accuracy_t_revsnn, early_exit,
          crossbar_accuracy, zoo_cpu)
# Result files that a table is made from, where they are not those of its name.
FROM = {overview: ("training_step_cpu", "unroll_cpu", "sharing_cpu", "reversible_depth_cpu", "reversible_memory",
                   "t_revsnn_memory", "zoo_cpu", "early_exit"),
        accuracy_t_revsnn: tuple(f"accuracy_t_revsnn_{task}" for task in T_REVSNN_TASKS)}
# A table is there once its results are; until then there is nothing between its marks.
TABLES = {make.__name__: make for make in MAKERS
          if all((RESULTS / f"{name}.json").exists() for name in FROM.get(make, (make.__name__,)))}


def refreshed(text: str) -> str:
    """The text of a page with every marked table made anew."""
    for name, make in TABLES.items():
        marked = rf"(<!-- {name} -->\n)(?:(?!<!--).)*(<!-- end -->)"
        if re.search(marked, text, flags=re.DOTALL):
            text = re.sub(marked, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(refreshed(page.read_text()))
