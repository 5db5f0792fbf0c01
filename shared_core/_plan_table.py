"""A MemoryPlan as text."""
from __future__ import annotations

from .report import size, text_table

__all__ = ["advice", "only_slower", "table"]

_PARTS = ("parameters", "inputs", "optimizer", "gradients", "activations", "transients")


def table(plan, advice: bool = True) -> str:
    """One row per method, the fastest first; parts that are nothing everywhere are left out."""
    known = [m for m in plan.methods if m.peak is not None]
    parts = [part for part in _PARTS if any(getattr(m.peak, part) for m in known)]
    batches = any(m.largest_batch is not None for m in plan.methods)
    header = ["method", "peak", *parts, "peak in", *(["fits"] if plan.budget is not None else []),
              *(["largest batch"] if batches else [])]
    rows = []
    for m in known:
        row = [m.name + (" *" if m is plan.chosen else ""), size(m.peak.peak),
               *(size(getattr(m.peak, part)) for part in parts), m.peak.phase]
        if plan.budget is not None:
            row.append("yes" if m.peak.peak <= plan.budget else "no")
        if batches:
            row.append("?" if m.largest_batch is None else str(m.largest_batch))
        rows.append(row)
    lines = [f"{plan.model} on {plan.device}, input {list(plan.shape)}, optimizer {plan.optimizer or 'none'}"
             + ("" if plan.budget is None else f", budget {size(plan.budget)}"), text_table(rows, header)]
    if plan.chosen is not None:
        lines.append("* the fastest that fits" if plan.budget is not None else
                     "* the smallest peak (there is no budget; with one, this marks the fastest method within it)")
    problems = dict.fromkeys(m.problem for m in plan.methods if m.problem is not None)
    lines += [", ".join(m.name for m in plan.methods if m.problem == problem) + f": {problem}" for problem in problems]
    return "\n".join([*lines, *(plan.advice if advice else ()), *plan.notes])


def only_slower(plan) -> list[str]:
    """Where running all convolutions again gains nothing over running the cheap ones."""
    found = {m.name: m for m in plan.methods if m.peak is not None}
    cheap, every = found.get("recompute(balanced)"), found.get("recompute(memory)")
    if cheap is None or every is None or every.peak.peak < cheap.peak.peak or _most(every) > _most(cheap):
        return []
    is_what = "has the same peak as" if every.peak.peak == cheap.peak.peak else "has a higher peak than"
    return [f"{every.name} {is_what} {cheap.name} here: it would only cost time."]


def _most(method) -> int:
    return method.largest_batch or 0


def advice(plan, best, floor, steps: int | None, steps_of_one: int | None) -> list[str]:
    """best: the smallest method, with its largest batch.  floor: what it needs without a sample.

    steps: a smaller T that fits, if one is known.  steps_of_one: the same for a batch of one sample.
    """
    dim, unplanned = plan.batch_dim, [m.name for m in plan.methods if m.peak is None]
    lines = [f"Nothing fits {size(plan.budget)}: the smallest peak is {size(best.peak.peak)}, with {best.name}."]
    if unplanned:
        lines = [f"No method that could be planned fits {size(plan.budget)} (not planned: {', '.join(unplanned)}): the "
                 f"smallest peak is {size(best.peak.peak)}, with {best.name}."]
    learned = floor.parameters + floor.gradients
    of_optimizer = learned + floor.state + floor.work
    if best.largest_batch:
        lines.append(f"With it, a batch of {best.largest_batch} instead of {plan.shape[dim]} fits"
                     + (f", or T = {steps} instead of {plan.shape[0]}." if steps else "."))
    elif steps:
        lines.append(f"With it, T = {steps} instead of {plan.shape[0]} fits.")
    elif floor.parameters >= plan.budget:
        lines.append(f"The parameters alone are {size(floor.parameters)}: a smaller model is needed.")
    elif learned >= plan.budget:
        lines.append(f"Parameters and their gradients alone are {size(learned)}: a smaller model is needed.")
    elif of_optimizer >= plan.budget:
        lines.append(f"Parameters, gradients, and what the optimizer keeps and needs in its step are "
                     f"{size(of_optimizer)} without any sample: another optimizer, which keeps less"
                     f"{_sgd(plan.optimizer)}, or a smaller model is needed; fewer time steps or samples cannot help.")
    elif steps_of_one:
        lines.append(f"With it, a batch of 1 and T = {steps_of_one} instead of {plan.shape[0]} fits.")
    elif best.largest_batch == 0:
        lines.append("Not even one sample fits: a smaller input or model is needed.")
    else:
        lines.append("A smaller batch or input, fewer time steps or a smaller model is needed.")
    return lines


def _sgd(optimizer: str | None) -> str:
    return "" if (optimizer or "").lower() == "sgd" else " (sgd without momentum keeps nothing)"
