"""A MemoryPlan as text."""
from __future__ import annotations

from .report import size, text_table

__all__ = ["advice", "table"]

_PARTS = ("parameters", "inputs", "optimizer", "gradients", "activations", "transients")


def table(plan) -> str:
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
        why = "smallest" if plan.budget is None else "fastest that fits"
        lines.append(f"* the {why}")
    lines += [f"{m.name}: {m.problem}" for m in plan.methods if m.problem is not None]
    return "\n".join([*lines, *plan.advice, *plan.notes])


def advice(plan, best, steps: int | None) -> list[str]:
    """best: the smallest method, with its largest batch.  steps: a smaller T that fits, if one is known."""
    peak, dim = best.peak, plan.batch_dim
    lines = [f"Nothing fits {size(plan.budget)}: the smallest peak is {size(peak.peak)}, with {best.name}."]
    fixed = peak.parameters + peak.optimizer
    if best.largest_batch:
        lines.append(f"With it, a batch of {best.largest_batch} instead of {plan.shape[dim]} fits"
                     + (f", or T = {steps} instead of {plan.shape[0]}." if steps else "."))
    elif steps:
        lines.append(f"With it, T = {steps} instead of {plan.shape[0]} fits.")
    elif fixed >= plan.budget:
        lines.append(f"Parameters and optimizer state alone are {size(fixed)}: a smaller model or another optimizer "
                     "is needed.")
    else:
        lines.append("Not even one sample fits: fewer time steps, a smaller input or model is needed.")
    return lines
