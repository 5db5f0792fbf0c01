"""The models side by side: a row for each component, a column for each model. As text, JSON, and stacked bars (PNG).

A new model is a line in _RUNS and one in _MODELS: how it is run and with which options, and how it splits its energy
into components.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import MemextError
from ..report import text_table
from ._sata_rules import COMPAT
from ._spikesim_rules import COMPAT_SPIKESIM
from .estimate import Estimate, estimate
from .sata import SataResult, sata
from .spikesim import SpikeSimResult, spikesim
from .table import LayerTable

__all__ = ["COMPONENTS", "TOOLS", "Costs", "compare", "costs"]

COMPONENTS = {"synaptic": "synaptic operations", "lif": "LIF units", "spad": "registers of the array",
              "converter": "converters of crossbars", "interconnect": "H-trees", "sram": "on-chip buffers",
              "leakage": "leakage of on-chip buffers", "dram": "DRAM"}
_COLORS = {"synaptic": "tab:blue", "lif": "tab:orange", "spad": "tab:green", "converter": "tab:cyan",
           "interconnect": "tab:olive", "sram": "tab:red", "leakage": "tab:pink", "dram": "tab:purple"}


class _Model(NamedTuple):
    title: str
    run: str  # of _RUNS
    parts: Callable[[object], dict[str, float]]  # its result -> nJ per component


class _Run(NamedTuple):
    """options: of costs() that the model takes beside T.  tools: published ones that its compat takes."""

    call: Callable
    options: tuple[str, ...]
    tools: tuple[str, ...] = ()


def _sata_parts(found: SataResult) -> dict[str, float]:
    return dict(synaptic=found.spike_mac_nj, lif=found.lif_nj, spad=found.spad_nj,
                sram=found.sram_nj - found.sram_leakage_nj, leakage=found.sram_leakage_nj, dram=found.dram_nj)


def _spikesim_parts(found: SpikeSimResult) -> dict[str, float]:
    return dict(synaptic=found.crossbar_nj, lif=found.lif_nj, converter=found.converter_nj,
                interconnect=found.interconnect_nj, sram=found.buffer_nj)


_RUNS = {
    "estimate": _Run(estimate, ("sparsity",)),
    "sata": _Run(sata, ("sparsity", "dataflow", "lif_units", "array", "rules"), tuple(COMPAT)),
    "spikesim": _Run(spikesim, ("xbar_size", "device", "pes_per_tile", "clock_mhz", "crossbar_pj"),
                     tuple(COMPAT_SPIKESIM)),
}
_MODELS = {
    "table2": _Model("estimated, Table II", "estimate", lambda found: dict(synaptic=found.table2_nj)),
    "eq13": _Model("estimated, Eq. 13", "estimate", lambda found: dict(synaptic=found.eq13_nj)),
    "sata": _Model("SATA", "sata", _sata_parts),
    "spikesim": _Model("SpikeSim", "spikesim", _spikesim_parts),
}
TOOLS = tuple(tool for run in _RUNS.values() for tool in run.tools)


@dataclass(frozen=True)
class Costs:
    """Of one sample.  results: {"estimate": Estimate, "sata": SataResult, "spikesim": SpikeSimResult}.  parts: {model:
    {component: nJ}}, components as in COMPONENTS; those a model does not know are left out."""

    table: LayerTable
    results: Mapping[str, Estimate | SataResult | SpikeSimResult]
    parts: Mapping[str, Mapping[str, float]]

    @property
    def T(self) -> int:
        return self.estimate.T

    @property
    def estimate(self) -> Estimate:
        return self.results["estimate"]

    @property
    def sata(self) -> SataResult:
        return self.results["sata"]

    @property
    def spikesim(self) -> SpikeSimResult:
        return self.results["spikesim"]

    def total_nj(self, model: str) -> float:
        return sum(self.parts[model].values())

    @property
    def not_counted(self) -> tuple[str, ...]:
        """Of all models, with which one leaves it out: "SATA: pool (pool): why"."""
        return tuple(f"{name}: {line}" for name, found in self.results.items() for line in found.not_counted)

    def to_dict(self) -> dict:
        """Every figure, as JSON types."""
        models = {name: {"title": model.title, "parts_nj": dict(self.parts[name]), "total_nj": self.total_nj(name)}
                  for name, model in _MODELS.items()}
        return {"T": self.T, "models": models, **{name: found.to_dict() for name, found in self.results.items()},
                "table": self.table.to_dict()}

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` to `path`. Raises OSError where that cannot be written."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def text(self) -> str:
        """Components by models, in nJ for one sample, and what the models leave out."""
        rows = [[label, *(_cell(self.parts[name].get(part)) for name in _MODELS)] for part, label in COMPONENTS.items()]
        rows.append(["total", *(_cell(self.total_nj(name)) for name in _MODELS)])
        header = [f"nJ for one sample, T = {self.T:.4g}", *(model.title for model in _MODELS.values())]
        found = self.sata
        lines = [text_table(rows, header),
                 f"SATA: {_cell(found.cycles)} cycles, {found.latency_ns / 1e6:.4f} ms, "
                 f"{found.area_um2 / 1e6:.4f} mm2, {found.lif_units} LIF units, {found.dataflow}, "
                 f"{found.compat or 'corrected'}",
                 f"SpikeSim: {self.spikesim.summary()}", f"SpikeSim: {self.spikesim.lif_line()}",
                 f"membranes of one sample: {found.membrane_bytes} bytes"]
        for name, result in self.results.items():
            lines += [f"not counted by {name}: {line}" for line in _grouped(result.not_counted)]
            lines += [f"note by {name}: {line}" for line in _grouped(result.notes)]
        lines += [f"note: {line}" for line in self.table.notes]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Stacked bars, one for each model.  Raises MemextError: matplotlib is not installed."""
        _bars({"": self}, path)


def costs(table: LayerTable, *, T: int | None = None, compat: str | Sequence[str] | None = None, **options) -> Costs:
    """All models on one table.

    compat: of TOOLS, one or several: that model counts as the published tool does, the others in the corrected form.
    options: as in estimate(), sata() and spikesim(): sparsity, dataflow, lif_units, array, xbar_size, device, ...
    Raises MemextError: an option that no model knows, two tools of one model; as the models do.
    """
    known = sorted({name for run in _RUNS.values() for name in run.options})
    for name in options.keys() - set(known):
        raise MemextError(f"costs: {name!r} is no option of any model; allowed: T, compat, {', '.join(known)}")
    chosen = _tools(compat)
    results = {}
    for name, run in _RUNS.items():
        given = {key: options[key] for key in run.options if key in options}
        results[name] = run.call(table, T=T, **given, **({"compat": chosen.get(name)} if run.tools else {}))
    return Costs(table, results, {name: model.parts(results[model.run]) for name, model in _MODELS.items()})


def _tools(compat: str | Sequence[str] | None) -> dict[str, str]:
    """{model: tool}"""
    found: dict[str, str] = {}
    for tool in [compat] if isinstance(compat, str) else compat or ():
        name = next((name for name, run in _RUNS.items() if tool in run.tools), None)
        if name is None:
            raise MemextError(f"costs: compat has {tool!r}; allowed: {', '.join(TOOLS)}")
        if name in found:
            raise MemextError(f"costs: compat has both {found[name]!r} and {tool!r}; both are of {name}, which "
                              "counts in one way at a time")
        found[name] = tool
    return found


def compare(runs: Mapping[str, Costs], path: str | Path | None = None) -> str:
    """Several runs side by side, as text, each figure also as a ratio to the first run's; with a path, as PNG too.

    Raises MemextError: less than two runs.
    """
    if len(runs) < 2:
        raise MemextError(f"compare: {len(runs)} run was given; pass {{name: costs(table), ...}} with at least two")
    figures = {f"{model.title}, {COMPONENTS[part]}, nJ": (lambda run, name=name, part=part: run.parts[name].get(part))
               for name, model in _MODELS.items() for part in COMPONENTS}
    figures |= {f"{model.title}, nJ": lambda run, name=name: run.total_nj(name) for name, model in _MODELS.items()}
    figures |= {"SATA, cycles": lambda run: run.sata.cycles, "SATA, latency ns": lambda run: run.sata.latency_ns,
                "SATA, area um2": lambda run: run.sata.area_um2, "SATA, LIF units": lambda run: run.sata.lif_units,
                "SpikeSim, latency ns": lambda run: run.spikesim.latency_ns,
                "SpikeSim, EDP nJ ns": lambda run: run.spikesim.edp_nj_ns,
                "SpikeSim, area um2": lambda run: run.spikesim.area_um2,
                "SpikeSim, LIF module um2": lambda run: run.spikesim.lif_area_um2,
                "membrane bytes": lambda run: run.sata.membrane_bytes, "time steps": lambda run: run.T}
    rows = []
    for label, figure in figures.items():
        values = [figure(run) for run in runs.values()]
        only = label.startswith("estimated") and COMPONENTS["synaptic"] in label  # that model's total is the same
        if only or all(value is None for value in values):
            continue
        row = [label, _cell(values[0])]
        for value in values[1:]:
            row += [_cell(value), "-" if value is None or not values[0] else f"{value / values[0]:.3f}x"]
        rows.append(row)
    names = list(runs)
    text = text_table(rows, ["", names[0], *(cell for name in names[1:] for cell in (name, ""))])
    if path is not None:
        _bars(runs, path)
    return text


def _bars(runs: Mapping[str, Costs], path: str | Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MemextError("plot: matplotlib is not installed; run: pip install matplotlib") from error
    # One panel a model: their scales are orders of magnitude apart, and a stack needs a linear axis.
    figure = Figure(figsize=(3 * len(_MODELS), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_MODELS))
    for axes, (name, model) in zip(panels, _MODELS.items()):
        for at, run in enumerate(runs.values()):
            bottom = 0.0
            for part, value in run.parts[name].items():
                axes.bar(at, value, bottom=bottom, color=_COLORS[part], width=0.6)
                bottom += value
        axes.set_title(model.title, fontsize="medium", pad=14)
        axes.set_xticks(range(len(runs)), range(1, len(runs) + 1) if len(runs) > 1 else [""])
        axes.set_xlim(-0.7, len(runs) - 0.3)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    panels[0].set_ylabel("nJ for one sample")
    if len(runs) > 1:  # names of runs are long
        figure.suptitle("\n".join(f"{number}: {name}" for number, name in enumerate(runs, 1)), fontsize="medium")
    used = [part for part in COMPONENTS if any(part in run.parts[name] for run in runs.values() for name in _MODELS)]
    handles = [panels[0].bar(0, 0, color=_COLORS[part]) for part in used]
    figure.legend(handles, [COMPONENTS[part] for part in used], loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _grouped(lines: tuple[str, ...]) -> list[str]:
    """Lines "name: reason" with the same reason as one."""
    found: dict[str, list[str]] = {}
    for line in lines:
        name, _, reason = line.partition(": ")
        found.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]
