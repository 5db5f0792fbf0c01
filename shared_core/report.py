"""Turns memory reports into text and pictures."""

from __future__ import annotations

from .errors import MemextError

__all__ = ["compare", "plot", "size", "table", "text_table"]

_PHASE_COLORS = {"forward": "tab:blue", "backward": "tab:orange", "recompute": "tab:green",
                 "optimizer": "tab:purple"}


def size(nbytes):
    """Bytes for a reader: '-' for None, else B, KiB, MiB or GiB."""
    if nbytes is None:
        return "-"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} B"


def text_table(rows, header=()):
    """Rows of strings in aligned columns: the first to the left, the others to the right."""
    lines = [list(map(str, row)) for row in ([header] if header else []) + list(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def table(report):
    """One MemoryReport as text. Categories that hold nothing are left out."""
    rows = [(f"peak live tensors on {report.device}", size(report.peak_bytes), f"in {report.peak_phase}")]
    categories = sorted(report.by_category.items(), key=lambda item: -item[1])
    rows += [(f"  {name}", size(nbytes), f"{nbytes / report.peak_bytes:.0%}")
             for name, nbytes in categories if nbytes]
    rows.append(("saved for backward", size(report.saved_bytes), ""))
    rows.append(("held when backward starts", size(report.held_bytes), ""))
    rows.append(("left after the step", size(report.retained_bytes), ""))
    rows += [(f"there before: {name}", size(nbytes), "") for name, nbytes in report.base_by_category.items()
             if nbytes]
    rows += [(f"peak live tensors on {device}", size(nbytes), "")
             for device, nbytes in report.peak_by_device.items() if device != report.device and nbytes]
    for label, reading in (("CUDA allocated", report.cuda_allocated_bytes),
                           ("CUDA reserved", report.cuda_reserved_bytes),
                           ("resident memory", report.resident_bytes)):
        if reading is not None:
            rows.append((f"{label}, over base", size(reading), f"{_signed(reading - report.peak_bytes)}"))
    rows.append(("time, tracking included", f"{report.seconds * 1e3:.1f} ms", ""))
    return "\n".join([text_table(rows), *(f"note: {note}" for note in report.notes)])


def compare(reports):
    """Several reports, {name: MemoryReport}, with ratios to the first, as text."""
    first = next(iter(reports.values()))
    columns = (("peak", "peak_bytes", size), ("saved", "saved_bytes", size), ("held", "held_bytes", size),
               ("CUDA allocated", "cuda_allocated_bytes", size), ("resident", "resident_bytes", size),
               ("time", "seconds", lambda seconds: f"{seconds * 1e3:.1f} ms"))
    columns = [column for column in columns if getattr(first, column[1]) is not None]
    rows = []
    for name, report in reports.items():
        row = [name]
        for _, attribute, show in columns:
            value, reference = getattr(report, attribute), getattr(first, attribute)
            row += [show(value) if value is not None else "-", _ratio(value, reference)]
        rows.append(row)
    header = ["method"] + [cell for label, _, _ in columns for cell in (label, "x")]
    return text_table(rows, header)


def plot(report, path):
    """Live bytes over time, coloured by phase, as a PNG at `path`."""
    if not report.timeline:
        raise MemextError("plot: the report has no timeline (nothing was allocated, or timeline=False). "
                          "Measure again with timeline=True.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MemextError("plot: matplotlib is not installed; run: pip install matplotlib") from error
    # A Figure of our own on an Agg canvas: needs no display and leaves the user's pyplot backend alone.
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    seconds = [point.seconds for point in report.timeline]
    mebibytes = [point.live_bytes / 2**20 for point in report.timeline]
    axes.step(seconds, mebibytes, where="post", color="black", linewidth=0.8)
    for phase, color in _PHASE_COLORS.items():
        inside = [point.phase == phase for point in report.timeline]
        if any(inside):
            axes.fill_between(seconds, mebibytes, where=inside, step="post", color=color, alpha=0.4,
                              label=phase)
    axes.axhline(report.peak_bytes / 2**20, linestyle=":", color="tab:red",
                 label=f"peak {size(report.peak_bytes)}")
    axes.set(xlabel="seconds", ylabel="live tensor memory, MiB", title=f"over base, on {report.device}")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _ratio(value, reference):
    return f"{value / reference:.2f}" if reference and value is not None else "-"


def _signed(nbytes):
    return f"{'+' if nbytes >= 0 else '-'}{size(abs(nbytes))} against live tensors"
