"""SATA: energy, cycles and area of a network on a sparsity-aware systolic array.

Source: "Are SNNs Truly Energy-efficient?" (Section III-A) and the inference tools it links to. Where those count in a
way that neither the paper nor sense supports, the default counts otherwise (_sata_rules.py says where and how), and
compat= gives the tools' own figures.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..errors import MemextError
from ..report import text_table
from ._layers import Layer
from ._rates import not_counted, rates_of, steps_of
from ._sata_counts import DATAFLOWS, TICK_BATCH, Accesses, Counts, Run, count
from ._sata_energy import Energy, energy
from ._sata_rules import CORRECTED, SATA_2023, SATA_2024, Rules, rules_of
from ._sata_units import Array, Memory, array_area, groups_of
from .table import LayerTable

__all__ = ["CORRECTED", "DATAFLOWS", "SATA_2023", "SATA_2024", "Accesses", "Array", "Memory", "Rules", "SataLayer",
           "SataResult", "sata"]


@dataclass(frozen=True)
class SataLayer:
    """One layer, for one sample and all time steps. compute_nj = spike_mac_nj + lif_nj + spad_nj; sram_leakage_nj is a
    part of sram_nj.

    macs: accumulations carried out.  lif_updates: of neurons.  lif_cycles: of the cycles, those that shared LIF units
    add.
    """

    name: str
    cycles: int
    lif_cycles: int
    latency_ns: float
    macs: float
    lif_updates: int
    spike_mac_nj: float
    lif_nj: float
    spad_nj: float
    compute_nj: float
    dram_nj: float
    sram_nj: float
    sram_leakage_nj: float
    total_nj: float
    accesses: Accesses


@dataclass(frozen=True)
class SataResult:
    """The sums over all layers, and the array.  area_um2: of the processing elements and LIF units, without memories.

    lif_units: of the array.  lif_share: of them in the area of the computation units (LIF and accumulators, without
    registers).  lif_power_mw: of all of them, when all are used.  membrane_bytes: of one sample's
    membranes, 32 bits each, shared ones once (EfficientLIF-Net's LIF memory).  compat: None for the corrected form.
    """

    cycles: int
    lif_cycles: int
    latency_ns: float
    macs: float
    lif_updates: int
    spike_mac_nj: float
    lif_nj: float
    spad_nj: float
    compute_nj: float
    dram_nj: float
    sram_nj: float
    sram_leakage_nj: float
    total_nj: float
    area_um2: float
    lif_area_um2: float
    lif_share: float
    lif_power_mw: float
    lif_units: int
    membrane_bytes: int
    accesses: Accesses
    T: int
    dataflow: str
    compat: str | None
    layers: tuple[SataLayer, ...]
    not_counted: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        """A line per layer, and the sums."""
        columns = ("cycles", "macs", "lif_updates", "compute_nj", "dram_nj", "sram_nj", "sram_leakage_nj",
                   "total_nj")
        rows = [(x.name, *(_shown(getattr(x, name)) for name in columns)) for x in (*self.layers, self._total())]
        more = [f"latency {self.latency_ns / 1e6:.4f} ms, array {self.area_um2 / 1e6:.4f} mm2, {self.lif_units} LIF "
                f"units: {self.lif_share:.1%} of the computation units' area"]
        more += [f"not counted: {name}" for name in self.not_counted] + [f"note: {note}" for note in self.notes]
        return "\n".join([text_table(rows, ("layer", "cycles", "ACs", "LIF updates", "compute, nJ", "DRAM, nJ",
                                            "SRAM, nJ", "of it leakage", "total, nJ")), *more])

    def _total(self) -> SataLayer:
        return SataLayer("total", self.cycles, self.lif_cycles, self.latency_ns, self.macs, self.lif_updates,
                         self.spike_mac_nj, self.lif_nj, self.spad_nj, self.compute_nj, self.dram_nj, self.sram_nj,
                         self.sram_leakage_nj, self.total_nj, self.accesses)


def sata(table: LayerTable, *, T: int | None = None, sparsity: float | str | None = None, dataflow: str = TICK_BATCH,
         lif_units: int | None = None, array: Array | None = None, compat: str | None = None, rules: Rules | None = None
         ) -> SataResult:
    """What one sample costs on the array.

    T: time steps; default: the table's.  sparsity: of inputs, as in estimate().
    dataflow: "tick-batch" (all time steps of a tile before the next; SATA's own), or "output-stationary" or
        "weight-stationary", with time outermost.
    lif_units: of the array; default: one for each PE, or, where the whole network shares membranes between n groups of
        channels (C#n), the n-th part: neurons then wait, n cycles instead of one.
    array: default: 16 x 8 PEs at 400 MHz, buffers of 144, 32 and 32 KB.
    compat: None, the corrected form; "sata-2023", "sata-2024": the published tools'. They know one dataflow, and
        neither groups nor dilation nor transposed convolution: such layers are then listed in not_counted.
    rules: any mixture of both, e.g. dataclasses.replace(CORRECTED, ungated=True).
    Returns: SataResult.  Energies of layers add up to the totals (in compat to within one accumulation, as the tools
        cut the sum to a whole number).
    Raises MemextError: no time steps, no sparsity for a layer, an unknown dataflow or compat, too many LIF units.
    """
    steps, rules_ = steps_of("sata", table, T), rules_of("sata", compat, rules)
    rates = rates_of("sata", table, sparsity)
    array = Array() if array is None else array
    if not isinstance(array, Array):
        raise MemextError(f"sata: array is {type(array).__name__}; allowed: Array(rows=16, columns=8, ...) or None")
    if dataflow not in DATAFLOWS:
        raise MemextError(f"sata: dataflow is {dataflow!r}; allowed: {', '.join(map(repr, DATAFLOWS))}")
    if compat is not None and dataflow != TICK_BATCH:
        raise MemextError(f"sata: the published tools only count dataflow={TICK_BATCH!r}; for {dataflow!r} leave out "
                          "compat")
    units = _units(table, array, lif_units)
    weights_stay = sum(layer.weights for layer in table) * array.weight_bits <= 8 * array.weight_buffer_bytes
    run = Run(array, rules_, dataflow, steps, table.T, units, weights_stay)
    kept, left = _split(table, rules_)
    rates |= dict.fromkeys((layer.name for layer in kept if layer.kind == "neuron"), 0.0)
    last = {layer.membrane: layer.name for layer in kept if layer.membrane}
    counts = [(layer, count(layer, rates[layer.name], last.get(layer.membrane, layer.name) == layer.name, run))
              for layer in kept]
    notes = tuple(f"{layer.name}: its input is not only 0 and 1; the array has no multipliers, and it is counted as "
                  "accumulations" for layer in kept if layer.real_input)
    return _result(counts, run, table, compat, (*not_counted(table, "the array runs convolutions and linear layers"),
                                                *left), notes)


def _units(table: LayerTable, array: Array, lif_units: int | None) -> int:
    if lif_units is None:
        sharing = min((layer.groups_sharing for layer in table if layer.spiking), default=1)
        return max(1, array.elements // sharing)
    if isinstance(lif_units, bool) or not isinstance(lif_units, int) or not 1 <= lif_units <= array.elements:
        raise MemextError(f"sata: lif_units is {lif_units!r}; allowed: from 1 to {array.elements}, one for each PE "
                          f"(C#4 of 128 PEs are 32)")
    return lif_units


def _split(table: LayerTable, rules: Rules) -> tuple[list[Layer], list[str]]:
    """The layers that are counted, and those that the published tools have no notion of."""
    kept, left = [], []
    for layer in (layer for layer in table if layer.counted or layer.kind == "neuron"):
        why = None
        if rules.padding_assumed:
            odd = [what for what, is_odd in (("groups", layer.groups > 1), ("dilation", layer.dilation != (1, 1)),
                                             ("transposed convolution", layer.kind == "transposed"),
                                             ("neurons without a layer", layer.kind == "neuron")) if is_odd]
            why = f"the published tools know no {' and no '.join(odd)}" if odd else None
        if why is None:
            kept.append(layer)
        else:
            left.append(f"{layer.name} ({layer.kind}): {why}")
    if not any(layer.counted for layer in kept):
        raise MemextError(f"sata: no layer of the table can be counted: {'; '.join(left)}")
    return kept, left


def _result(counts: list[tuple[Layer, Counts]], run: Run, table: LayerTable, compat: str | None,
            left: tuple[str, ...], notes: tuple[str, ...]) -> SataResult:
    groups, array = groups_of(run.rules.rounded), run.array
    layers, found = [], []
    for layer, c in counts:
        part = energy(c.cycles, c.macs, c.updates, c.accesses, bool(layer.real_input), run, groups)
        found.append(part)
        layers.append(SataLayer(layer.name, c.cycles, c.lif_cycles, c.cycles * array.cycle_ns, c.macs, c.updates,
                                **_figures(part), accesses=c.accesses))
    cycles, macs = sum(c.cycles for _, c in counts), sum(c.macs for _, c in counts)
    updates, moved = sum(c.updates for _, c in counts), sum((c.accesses for _, c in counts), Accesses())
    if run.rules.rounded:
        macs = int(macs)
        moved = replace(moved, spad=macs)
        logic = energy(cycles, macs, updates, moved, False, run, groups)
        total = logic._replace(dram=sum(part.dram for part in found), sram=sum(part.sram for part in found),
                               leakage=sum(part.leakage for part in found))
    else:
        total = Energy(*(sum(parts) for parts in zip(*found)))
    area = array_area(array, run.lif_units)
    lif = groups["lif"]
    return SataResult(cycles, sum(c.lif_cycles for _, c in counts), cycles * array.cycle_ns, macs, updates,
                      **_figures(total), area_um2=sum(area.values()), lif_area_um2=area["lif"],
                      lif_share=area["lif"] / (area["lif"] + area["spike_mac"]),
                      lif_power_mw=run.lif_units * (lif.gated_mw + lif.ungated_mw + lif.leakage_mw),
                      lif_units=run.lif_units, membrane_bytes=_membrane_bytes(table), accesses=moved,
                      T=run.time_steps, dataflow=run.dataflow, compat=compat, layers=tuple(layers), not_counted=left,
                      notes=notes)


def _figures(e: Energy) -> dict[str, float]:
    return dict(spike_mac_nj=e.spike_mac, lif_nj=e.lif, spad_nj=e.spad, compute_nj=e.compute, dram_nj=e.dram,
                sram_nj=e.sram, sram_leakage_nj=e.leakage, total_nj=e.total)


def _membrane_bytes(table: LayerTable) -> int:
    """32 bits for each membrane; layers that share one count once."""
    found = {layer.membrane or f"of {layer.name}": layer.membranes for layer in table}
    return 4 * sum(found.values())


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"
