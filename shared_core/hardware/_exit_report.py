"""What early exit saves: the models of costs(), averaged over the samples.

    expected cost = sum_t P(exit = t) cost(t)        cost(t): of the first t steps, with the rates of who stops there

The energy-delay product is that of each sample, E[energy * latency]. The product of the means, E[energy] * E[latency],
is another figure (a lower one, as samples that take long also cost more); published figures do not say which they are,
so both are given.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MemextError
from ..report import text_table
from . import report as models
from ._collect import layer_table
from ._exit_calibrate import pairs
from .report import Costs, costs
from .table import LayerTable

__all__ = ["ExitCost", "ExitReport", "exit_costs", "expected_costs", "reported", "tables_of"]


@dataclass(frozen=True)
class ExitCost:
    """By one model, of one sample in the mean.  full_...: with all T steps.  The delays and products are None where the
    model has no latency.  edp_nj_ns: E[energy * latency].  mean_product_nj_ns: E[energy] * E[latency]."""

    model: str
    full_nj: float
    energy_nj: float
    full_latency_ns: float | None
    latency_ns: float | None
    full_edp_nj_ns: float | None
    edp_nj_ns: float | None
    mean_product_nj_ns: float | None


@dataclass(frozen=True)
class ExitReport:
    """accuracy, full_accuracy: of early exit, and with all T steps; None without labels.  exits: share of samples that
    stopped at step 1 to T.  full, expected: Costs of T steps, and of early exit in the mean, for compare().  tables:
    the layers of those that stopped at each step (their first steps, their rates), where anybody did."""

    threshold: float
    samples: int
    accuracy: float | None
    full_accuracy: float | None
    mean_steps: float
    exits: tuple[float, ...]
    energy: Mapping[str, ExitCost]
    full: Costs
    expected: Costs
    tables: Mapping[int, LayerTable]

    @property
    def T(self) -> int:
        return len(self.exits)

    def to_dict(self) -> dict:
        return {"threshold": self.threshold, "samples": self.samples, "accuracy": self.accuracy,
                "full_accuracy": self.full_accuracy, "mean_steps": self.mean_steps, "T": self.T,
                "exits": list(self.exits), "energy": {name: vars(cost) for name, cost in self.energy.items()},
                "table": self.full.table.to_dict(), "tables": {str(t): x.to_dict() for t, x in self.tables.items()}}

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` to `path`, which memext energy --compare takes."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def text(self) -> str:
        shares = ", ".join(f"{t}: {share:.1%}" for t, share in enumerate(self.exits, 1))
        lines = [f"{self.mean_steps:.3f} of {self.T} steps in the mean (threshold {self.threshold:.5g}, {self.samples} "
                 f"samples); stopped at step {shares}"]
        if self.accuracy is not None:
            lines.append(f"accuracy {self.accuracy:.2%}, with all steps {self.full_accuracy:.2%}")
        rows = [(cost.model, _of(cost.full_nj, cost.energy_nj), _of(cost.full_latency_ns, cost.latency_ns),
                 _of(cost.full_edp_nj_ns, cost.edp_nj_ns), _of(cost.full_edp_nj_ns, cost.mean_product_nj_ns))
                for cost in self.energy.values()]
        header = ("of one sample, all steps -> early exit", "energy, nJ", "latency, ns", "EDP, nJ ns",
                  "product of the means")
        return "\n".join([*lines, text_table(rows, header)])


def exit_costs(tables: LayerTable | Mapping[int, LayerTable], exits: Sequence[float], **options) -> Costs:
    """Costs of one sample in the mean, where the share exits[t - 1] of all samples stops at step t.

    tables: of the network; or one for each t with a share, of its first t steps.  options: as for costs(), without T.
    Raises MemextError: shares that do not add up to 1; a step without a table.
    """
    shares = _shares(exits)
    return expected_costs({t: costs(_table_of(tables, t), T=t, **options) for t in shares}, exits)


def expected_costs(by_step: Mapping[int, Costs], exits: Sequence[float]) -> Costs:
    """sum_t exits[t - 1] * by_step[t], of every figure of every model; T is the mean number of steps."""
    shares = _shares(exits)
    runs, weights = [by_step[t] for t in shares], list(shares.values())
    last = runs[-1]
    return replace(last, results={name: _mean([run.results[name] for run in runs], weights) for name in last.results},
                   parts={name: _mean([run.parts[name] for run in runs], weights) for name in last.parts})


def exit_energy(full: Costs, by_step: Mapping[int, Costs], exits: Sequence[float]) -> dict[str, ExitCost]:
    """By each model, under the names of Costs.parts."""
    shares, found = _shares(exits), {}
    for name in full.parts:
        energy = {t: by_step[t].total_nj(name) for t in shares}
        latency = {t: _latency(by_step[t], name) for t in shares}
        all_nj, all_ns = full.total_nj(name), _latency(full, name)
        mean_nj = sum(p * energy[t] for t, p in shares.items())
        if all_ns is None:
            found[name] = ExitCost(_title(name), all_nj, mean_nj, *(None,) * 5)
            continue
        mean_ns = sum(p * latency[t] for t, p in shares.items())
        found[name] = ExitCost(_title(name), all_nj, mean_nj, all_ns, mean_ns, all_nj * all_ns,
                               sum(p * energy[t] * latency[t] for t, p in shares.items()),
                               mean_nj * mean_ns)
    return found


def reported(early, loader: Iterable, samples: int, options: dict) -> ExitReport:
    """See EarlyExit.report."""
    from .early_exit import ExitResult

    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise MemextError(f"early_exit: report: samples is {samples!r}; allowed: a number of samples from 1 on")
    results, right, full_right, kept = [], [], [], {}
    for x, labels in pairs(loader, labels=False):
        found = early(x)
        results.append(found)
        for t in range(found.T + 1):  # 0: whoever it is
            _keep(kept, t, x, found.steps == t if t else found.steps > 0, samples, early.T is None)
        if labels is not None:
            right.append(found.prediction == labels.to(x.device))
            full_right.append(early.all_steps(x)[-1].argmax(1) == labels.to(x.device))
    if not results:
        raise MemextError("early_exit: the loader is empty")
    result = ExitResult.cat(results)
    tables = tables_of(early, kept)
    everyone = _table(early, kept[0], result.T)
    full = costs(everyone, T=result.T, **options)
    by_step = {t: costs(table, T=t, **options) for t, table in tables.items()}
    return ExitReport(early.threshold, len(result.steps), _share(right), _share(full_right), result.mean_steps,
                      result.exits, exit_energy(full, by_step, result.exits), full,
                      expected_costs(by_step, result.exits), tables)


def _keep(kept: dict[int, list[Tensor]], t: int, x: Tensor, which: Tensor, samples: int, sequence: bool) -> None:
    room = samples - sum(part.shape[1 if sequence else 0] for part in kept.get(t, []))
    index = which.nonzero()[:room, 0]
    if room > 0 and len(index):
        kept.setdefault(t, []).append(x.index_select(1 if sequence else 0, index))


def tables_of(early, kept: Mapping[int, list[Tensor]]) -> dict[int, LayerTable]:
    """{t: the table of the first t steps on the samples kept[t]}."""
    return {t: _table(early, parts, t) for t, parts in sorted(kept.items()) if t}


def _table(early, parts: list[Tensor], steps: int) -> LayerTable:
    """Of the first `steps` steps on these samples."""
    step, x = early._step, torch.cat(parts, 1 if early.T is None else 0)

    def run(net, sample) -> None:
        with step.running():
            states = step.start(x[0] if early.T is None else x)
            for t in range(steps):
                _, states = step(early._input(x, t), states)

    # The sample's shape says how many steps and samples there are; its values are not looked at.
    sample = x[:steps] if early.T is None else x.unsqueeze(0).expand(steps, *x.shape)
    return layer_table(step.root(), sample, T=steps, run=run)


# ---- averages --------------------------------------------------------------------------------------------------------

def _shares(exits: Sequence[float]) -> dict[int, float]:
    """{step: share}, of steps at which anybody stops."""
    wrong = [p for p in exits if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1]
    if wrong or not len(exits) or abs(sum(exits) - 1) > 1e-3:
        raise MemextError(f"early_exit: exits is {list(exits)!r}; allowed: the share of samples that stop at step 1, "
                          "2, ..., adding up to 1")
    return {t: p / sum(exits) for t, p in enumerate(exits, 1) if p > 0}


def _table_of(tables: LayerTable | Mapping[int, LayerTable], t: int) -> LayerTable:
    if isinstance(tables, LayerTable):
        return tables
    if t not in tables:
        raise MemextError(f"early_exit: samples stop at step {t}, and there is no table of it; there are: "
                          f"{', '.join(map(str, tables))}")
    return tables[t]


def _mean(values: list, weights: list[float]):
    """Of numbers, and of what dataclasses, mappings and tuples hold of them; what is equal stays as it is."""
    first = values[0]
    if all(value is first or (type(value) is type(first) and value == first) for value in values):
        return first
    if is_dataclass(first):
        return replace(first, **{f.name: _mean([getattr(value, f.name) for value in values], weights)
                                 for f in fields(first) if f.init})
    if isinstance(first, Mapping):
        return {key: _mean([value[key] for value in values], weights) for key in first}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(w * value for w, value in zip(weights, values))
    if isinstance(first, tuple) and len({len(value) for value in values}) == 1:
        return tuple(_mean(list(parts), weights) for parts in zip(*values))
    return values[-1]  # words


def _latency(run: Costs, name: str) -> float | None:
    return getattr(run.results[models._MODELS[name].run], "latency_ns", None)


def _title(name: str) -> str:
    return models._MODELS[name].title


def _share(parts: list[Tensor]) -> float | None:
    return torch.cat(parts).double().mean().item() if parts else None


def _of(full: float | None, mean: float | None) -> str:
    if full is None or mean is None:
        return "-"
    return f"{full:.4g} -> {mean:.4g} ({mean / full - 1:+.1%})" if full else f"{full:.4g} -> {mean:.4g}"
