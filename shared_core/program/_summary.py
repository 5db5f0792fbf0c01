"""What is said at the end, on stderr; and in the folder of --report, as JSON and as a picture."""
from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from statistics import median

from .._entering import entered, plain_type
from ..report import size, text_table
from ..retrofit import classify

__all__ = ["text", "values"]

_NAMED = 4  # modules of a kind that are named one by one


def text(session, problems: list[str]) -> str | None:
    """None for a process that built no neuron, such as a DataLoader's worker."""
    from ._children import is_child

    if not session.models and is_child():
        return None
    found = values(session, problems)
    lines = []
    for model in found["models"]:
        lines += _of_model(model)
    if not found["models"]:
        lines.append(f"{found['neurons_built']} neurons became ours, and no model was called that holds one"
                     if found["neurons_built"] else "no neuron of SpikingJelly or snnTorch was built; nothing was done")
    if found["optimizer_steps"]:
        between = found["seconds_between_steps"]
        lines.append(f"the program took {found['optimizer_steps']} optimizer steps"
                     + (f", {_time(between)} apart (median)" if between else ""))
    lines += found["notes"]
    lines += _files(session, found)
    first, *rest = lines
    return "\n".join([f"memext run: {first}", *(f"  {line}" for line in rest)])


def values(session, problems: list[str]) -> dict:
    """The same as JSON types; bytes and seconds."""
    return {"method": session.options.method, "neurons_built": session.built,
            "models": [_model(session, model) for model in session.models],
            "optimizer_steps": session.steps,
            "seconds_between_steps": median(session.between) if session.between else None,
            "notes": [*session.notes, *problems]}


def _model(session, model) -> dict:
    changed, left = [], []
    for name, module in model.net.named_modules():
        records = entered(module)
        if records:
            changed.append([name, records[0].before.__name__, plain_type(module).__name__])
            continue
        for host in session.hosts.values():
            if host.framework.is_neuron(module):
                why = classify(host.framework, module)[1] or "it was not changed"
                left.append([name, type(module).__name__, why])
    measured = model.applied.measured
    step = None if measured is None else {
        "peak_bytes": {name: report.peak_bytes for name, report in measured.reports.items()},
        "saved_bytes": {name: report.saved_bytes for name, report in measured.reports.items()},
        "seconds": measured.seconds, "gradients_apart": measured.apart, "outputs_equal": measured.equal,
        "how": measured.how, "notes": measured.notes}
    return {"model": type(model.net).__name__, "methods": model.applied.methods, "changed": changed, "left": left,
            "notes": model.applied.notes, "step": step}


def _of_model(model: dict) -> list[str]:
    lines = [f"{model['model']}: {', '.join(dict.fromkeys(model['methods'])) or 'nothing could be done'}"]
    kinds = Counter((before, now) for _, before, now in model["changed"])
    for (before, now), count in kinds.items():
        lines.append(f"{count} {before} -> {now}" if before != now else f"{count} {before}, its forward")
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, kind, why in model["left"]:
        reasons.setdefault((kind, why), []).append(name or "(the model itself)")
    for (kind, why), names in reasons.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"left: {', '.join(names[:_NAMED])}{more} ({kind}): {why}")
    lines += model["notes"]
    if model["step"] is not None:
        lines += _table(model)
    else:
        lines.append("no training step of it was compared with a native one")
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def _table(model: dict) -> list[str]:
    step = model["step"]
    method = ", ".join(dict.fromkeys(model["methods"])) or "ours"
    rows = []
    for name in ("native", "ours"):
        if name in step["peak_bytes"]:
            base = "native" if "native" in step["peak_bytes"] else name
            rows.append((method if name == "ours" else name,
                         *(cell for key, show in (("peak_bytes", size), ("saved_bytes", size), ("seconds", _time))
                           for cell in (show(step[key][name]), _ratio(step[key][name], step[key][base])))))
    lines = text_table(rows, ("one training step", "peak", "x", "saved for backward", "x", "time", "x")).splitlines()
    lines.append(f"measured on copies of the model: {step['how']}")
    if step["outputs_equal"] is not None:
        outputs = "outputs equal native's" if step["outputs_equal"] else "outputs differ from native's"
        apart = step["gradients_apart"]
        grads = "other parameters have gradients" if apart is None else f"the gradient {apart:.0e} from native's"
        other = {"sltt", "share"}.intersection(model["methods"])
        lines.append(f"{outputs}, {grads}{', as ' + other.pop() + ' means it' if other else ''}")
    return lines + step["notes"]


def _files(session, found: dict) -> list[str]:
    folder, said = session.options.folder, []
    if folder is None:
        return said
    suffix = f"-{os.getpid()}" if _other_process() else ""
    path = Path(folder, f"run{suffix}.json")
    try:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        said.append(f"wrote {path}")
        if session.options.plot:
            measured = [model.applied.measured for model in session.models if model.applied.measured is not None]
            if measured:
                picture = Path(folder, f"run{suffix}.png")
                _plot(measured[0], ", ".join(found["models"][0]["methods"]), picture)
                said.append(f"wrote {picture}")
            else:
                said.append("no picture: no step was compared")
    except (OSError, ImportError) as problem:
        said.append(f"--report: {problem}")
    return said


def _other_process() -> bool:
    from ._children import is_child
    return is_child()


def _plot(measured, method: str, path: Path) -> None:
    """Live bytes through the step, native and ours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")  # needs no display, leaves the program's pyplot alone
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, color in (("native", "tab:gray"), ("ours", "tab:blue")):
        report = measured.reports.get(name)
        if report is not None and report.timeline:
            end = report.timeline[-1].seconds or 1.0
            axes.step([point.seconds / end for point in report.timeline],
                      [point.live_bytes / 2**20 for point in report.timeline], where="post", color=color,
                      label=f"{method if name == 'ours' else name}: peak {size(report.peak_bytes)}")
    axes.set(xlabel="share of the step", ylabel="live tensor memory over base, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}" if reference else "-"
