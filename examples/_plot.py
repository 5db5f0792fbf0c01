"""The picture of the demo: what is alive during one training step, method by method."""
from __future__ import annotations

from pathlib import Path

from shared_core.memory import MemoryReport

_COLORS = ("#8c8c8c", "#1f6fb4", "#d1632a", "#2f8f5b")  # native is grey; then one colour per method
_MIB = 2**20


def draw(found: dict[str, dict[str, MemoryReport]], captions: dict[str, str], path: Path) -> None:
    """One panel per framework, one curve per method, as a PNG at `path`.

    found: {framework: {method: report with a timeline}}.  captions: {framework: text over its panel}.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * len(found), 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    for axes, (framework, reports) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        for (method, report), color in zip(reports.items(), _COLORS):
            _curve(axes, method, report, color)
        axes.plot([], [], marker="o", color="black", markersize=5, linestyle="none", label="backward starts")
        highest = max(report.peak_bytes for report in reports.values()) / _MIB
        axes.set_ylim(0, 1.38 * highest)  # room for the legend over the curves
        axes.set_xlim(left=0)
        axes.set_title(captions[framework], fontsize=10)
        axes.set_xlabel("time within the step, ms (slowed by the tracking)")
        axes.legend(loc="upper left", fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    figure.axes[0].set_ylabel("live tensors over base, MiB")
    figure.suptitle("Memory during one training step", fontweight="bold")
    figure.savefig(path, format="png", dpi=130)


def _curve(axes, method: str, report: MemoryReport, color: str) -> None:
    times = [point.seconds * 1e3 for point in report.timeline]
    sizes = [point.live_bytes / _MIB for point in report.timeline]
    label = f"{method}: peak {report.peak_bytes / _MIB:.0f} MiB"
    axes.fill_between(times, sizes, step="post", color=color, alpha=0.15, linewidth=0)
    axes.step(times, sizes, where="post", color=color, linewidth=1.2, label=label)
    turn = next((i for i, point in enumerate(report.timeline) if point.phase != "forward"), None)
    if turn is not None:
        axes.plot(times[turn], sizes[turn], marker="o", color=color, markersize=5, markeredgecolor="white")
