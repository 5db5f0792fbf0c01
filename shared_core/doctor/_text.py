"""An Explanation as a short text: who is there, what is wrong, what to expect, what to do first."""
from __future__ import annotations

import textwrap

from ..report import size, text_table
from ._explain import Explanation, Neuron

__all__ = ["text"]

_WIDTH = 118
_COLUMNS = ("neurons", "class", "mode", "T", "N", "fires", "becomes")


def text(found: Explanation, every: bool = False) -> str:
    lines = [_head(found)]
    if found.neurons:
        lines += ["", text_table(_rows(found.neurons, every), _COLUMNS)]
    problems, notes = found.problems, [f for f in found.findings if not f.problem]
    for title, some in (("WRONG", problems), ("to know", notes)):
        for finding in some:
            lines += ["", *_wrapped(f"{title}: {finding.text}.", "")]
            if finding.todo:
                lines += _wrapped(f"-> {finding.todo}", "   ")
    if found.methods:
        lines += ["", "one training step, predicted (parameters, gradients, activations; no optimizer):"]
        lines.append(text_table([(m.call, size(m.peak), "" if m.of_native is None else f"{m.of_native:.2f}x")
                                 for m in found.methods], ("", "peak", "of now")))
        reasons = dict.fromkeys(m.problem for m in found.methods if m.problem)
        lines += [line for reason in reasons for line in _wrapped(f"not predicted: {reason}", "   ")]
    if found.advice:
        lines += ["", *_wrapped(f"DO: {found.advice}", "    ")]
    return "\n".join(lines)


def _head(found: Explanation) -> str:
    shapes = " and ".join(str(list(shape)) for shape in found.shapes)
    time = "" if found.T is None else f", T = {found.T}"
    batch = "" if found.N is None else f", N = {found.N}"
    again = "" if found.steps == 1 else f", called {found.steps} times"
    return f"{found.model} on {shapes}{again}: {len(found.neurons)} neurons{time}{batch}"


def _rows(neurons: list[Neuron], every: bool) -> list[tuple]:
    """A row for all that are alike, or for each."""
    groups: dict[tuple, list[Neuron]] = {}
    for i, n in enumerate(neurons):
        becomes = n.ours or "stays"
        groups.setdefault((n.kind, _mode(n), n.T, n.N, becomes, i if every else None), []).append(n)
    rows = []
    for (kind, mode, T, N, becomes, _), some in groups.items():
        name = some[0].name or "(the model)"
        name += f" ... {some[-1].name} ({len(some)})" if len(some) > 1 else ""
        rows.append((name, kind, mode, _or_dash(T), _or_dash(N), _rates(some), becomes))
    return rows


def _mode(n: Neuron) -> str:
    mode = {"m": "multi-step", "s": "step by step", None: "by hand" if n.framework == "by hand" else "step by step"}
    shared = f", {n.per_step}x a step" if n.per_step > 1 else ""
    return mode.get(n.step_mode, str(n.step_mode)) + (", Python loop" if n.looped else "") + shared


def _rates(some: list[Neuron]) -> str:
    rates = [n.rate for n in some if n.rate is not None]
    if not rates:
        return "-"
    low, high = f"{min(rates):.0%}", f"{max(rates):.0%}"
    return low if low == high else f"{low} to {high}"


def _or_dash(value) -> str:
    return "-" if value is None else str(value)


def _wrapped(line: str, indent: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, initial_indent=indent, subsequent_indent=indent + "   ",
                         break_long_words=False, break_on_hyphens=False)
