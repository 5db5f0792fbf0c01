"""SpikeSim: energy, latency and area of a network on in-memory crossbars.

Source: "Are SNNs Truly Energy-efficient?" (Section III-B) and the tool it links to. Where that counts in a way that
neither the papers nor sense supports, the default counts otherwise (_spikesim_rules.py says where and how), and
compat="spikesim" gives the tool's own figures.

    energy    pJ = PEs * positions * runs * (energy of a PE-cycle), for each layer; spikes do not change it
    latency   PE-cycles = sum(3/4 * positions * runs) of all layers but the last, and all of the last; 26 clocks each
    area      tiles, the buffer of all layers' inputs, and the LIF module: 22 bits for every membrane
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..errors import MemextError
from ..report import text_table
from ._layers import Layer
from ._rates import not_counted, steps_of
from ._spikesim_map import Placed, latencies, lif_areas, place, tiles_of
from ._spikesim_rules import (
    CORRECTED_SPIKESIM,
    PUBLISHED_SPIKESIM,
    SpikeSimRules,
    no_latency,
    outside_of_the_tool,
    spikesim_rules_of,
)
from ._spikesim_units import DEVICES, PARTS, PASTED_SRAM_PJ, RRAM_PJ, Crossbars, cycle_parts_pj, memory_um2
from .table import LayerTable

__all__ = ["CORRECTED_SPIKESIM", "PUBLISHED_SPIKESIM", "REFERENCES", "SpikeSimLayer", "SpikeSimResult", "SpikeSimRules",
           "spikesim"]

# What "Are SNNs Truly Energy-efficient?" prints, to be put beside what is counted here; nothing is fitted to it.
REFERENCES = {"LIF area, C#2": 1.38, "LIF area, C#4": 2.41, "EDP, T = 4 against 1": 10.4}


@dataclass(frozen=True)
class SpikeSimLayer:
    """One layer, for one sample and all time steps.  pe_cycles: of all its PEs.  latency_ns: what it adds.
    lif_area_um2: of its membranes; of those that several layers share, with the first."""

    name: str
    pes: int
    pe_cycles: int
    latency_ns: float | None
    crossbar_nj: float
    converter_nj: float
    lif_nj: float
    interconnect_nj: float
    buffer_nj: float
    total_nj: float
    lif_area_um2: float
    input_buffer_um2: float


@dataclass(frozen=True)
class SpikeSimResult:
    """The sums over all layers.  total_nj = crossbar_nj + converter_nj (and subtractors) + lif_nj + interconnect_nj
    (H-trees) + buffer_nj.

    latency_ns: None where the published tool, asked for by compat, has none; edp_nj_ns then, too.
    area_um2 = tile_area_um2 + input_buffer_um2 + lif_area_um2.  lif_area_alone_um2: if no membrane were shared.
    compat: None for the corrected form.
    """

    latency_ns: float | None
    pe_cycles: int
    crossbar_nj: float
    converter_nj: float
    lif_nj: float
    interconnect_nj: float
    buffer_nj: float
    total_nj: float
    edp_nj_ns: float | None
    area_um2: float
    tile_area_um2: float
    input_buffer_um2: float
    lif_area_um2: float
    lif_area_alone_um2: float
    pes: int
    tiles: int
    T: int
    xbar_size: int
    device: str
    compat: str | None
    layers: tuple[SpikeSimLayer, ...]
    not_counted: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        """A line per layer, and the sums."""
        columns = ("pes", "pe_cycles", *(f"{part}_nj" for part in PARTS), "total_nj", "lif_area_um2")
        lines = [*((layer.name, layer) for layer in self.layers), ("total", self)]
        rows = [(name, *(_shown(getattr(line, column)) for column in columns)) for name, line in lines]
        header = ("layer", "PEs", "PE-cycles", "crossbars, nJ", "converters, nJ", "LIF, nJ", "H-trees, nJ",
                  "buffers, nJ", "total, nJ", "LIF, um2")
        more = [self.summary(), self.lif_line()]
        more += [f"not counted: {name}" for name in self.not_counted] + [f"note: {note}" for note in self.notes]
        return "\n".join([text_table(rows, header), *more])

    def summary(self) -> str:
        latency = "no latency" if self.latency_ns is None else f"{self.latency_ns / 1e6:.4f} ms"
        return (f"{self.pes} PEs in {self.tiles} tiles of {self.xbar_size} x {self.xbar_size} {self.device} crossbars, "
                f"{latency}, {self.area_um2 / 1e6:.4f} mm2, {self.compat or 'corrected'}")

    def lif_line(self) -> str:
        text = f"LIF module: {self.lif_area_um2 / 1e6:.4f} mm2"
        if self.lif_area_um2 != self.lif_area_alone_um2:
            text += (f", {self.lif_area_alone_um2 / self.lif_area_um2:.2f}x less than without sharing (the paper: "
                     f"{REFERENCES['LIF area, C#2']}x with C#2, {REFERENCES['LIF area, C#4']}x with C#4)")
        return text


def spikesim(table: LayerTable, *, T: int | None = None, xbar_size: int = 64, device: str = "rram",
             pes_per_tile: int = 8, clock_mhz: float = 250.0, crossbar_pj: float | None = None,
             counted_nj: Mapping[str, Mapping[str, float]] | None = None, compat: str | None = None,
             rules: SpikeSimRules | None = None) -> SpikeSimResult:
    """What one sample costs on crossbars.

    T: time steps; default: the table's.
    xbar_size: rows and columns of a crossbar.  device: "rram" or "sram".  pes_per_tile, clock_mhz: the tool's.
    crossbar_pj: energy of one use of a crossbar; default: 1.76423 pJ for RRAM. For SRAM there is none: the tool's
        figure is the number of the crossbar's area.
    counted_nj: {layer: {part: nJ}} of one sample, for layers that were counted elsewhere, in place of this model's
        energies; parts: crossbar, converter, lif, interconnect, buffer. sj_memext.hardware.spikesim has them from
        SpikingJelly's event-driven counter.
    compat: None, the corrected form; "spikesim": the published tool's. It knows convolutions of one kernel size,
        without groups; other layers are then listed in not_counted.
    rules: any mixture of both, e.g. dataclasses.replace(CORRECTED_SPIKESIM, latency_per_output=True).
    Returns: SpikeSimResult.  Spike rates have no part in it: crossbars are read whether inputs are spikes or not.
    Raises MemextError: no time steps, an unknown compat or device, SRAM without an energy, a layer that is not there.
    """
    steps, rules_ = steps_of("spikesim", table, T), spikesim_rules_of(compat, rules)
    hardware = Crossbars(xbar_size, device, pes_per_tile, clock_mhz, _crossbar_pj(device, crossbar_pj, rules_))
    kept, left = _split(table, rules_)
    counted = _counted(kept, counted_nj or {})
    on_crossbars = [layer for layer in kept if layer.counted]
    placed = {layer.name: place(layer, xbar_size) for layer in on_crossbars}
    why = no_latency(list(placed), [p.pes for p in placed.values()], [p.filled for p in placed.values()], rules_)
    cycles = latencies(on_crossbars, placed, steps, table.T, rules_)
    lif, alone = lif_areas(kept, rules_)
    layers = tuple(_layer(layer, placed.get(layer.name), layer.runs(steps, table.T), hardware, counted,
                          None if why else cycles.get(layer.name, 0) * hardware.cycle_ns, lif[layer.name])
                   for layer in kept)
    left = (*not_counted(table, "crossbars run convolutions and linear layers"), *left)
    notes = tuple(f"{layer.name}: its input is not only 0 and 1; crossbars are driven by spikes, and it is counted as "
                  "if it were" for layer in on_crossbars if layer.real_input)
    notes += (f"no latency: {why}",) if why else ()
    return _result(layers, placed, hardware, steps, rules_, compat, alone, left, notes)


def _crossbar_pj(device: str, given: float | None, rules: SpikeSimRules) -> float:
    if device not in DEVICES:
        raise MemextError(f"spikesim: device is {device!r}; allowed: {', '.join(map(repr, DEVICES))}")
    if given is not None:
        return given
    if device == "sram" and not rules.pasted_sram:
        raise MemextError("spikesim: no energy is known for SRAM crossbars: the published tool's 671.089 pJ is the "
                          "number of their area in um2; pass crossbar_pj=, or compat='spikesim' for the tool's figure")
    return PASTED_SRAM_PJ if device == "sram" else RRAM_PJ


def _split(table: LayerTable, rules: SpikeSimRules) -> tuple[list[Layer], list[str]]:
    kept = [layer for layer in table if layer.counted or layer.kind == "neuron"]
    odd = outside_of_the_tool(kept) if rules.convolutions_only else {}
    left = [f"{layer.name} ({layer.kind}): {odd[layer.name]}" for layer in kept if layer.name in odd]
    kept = [layer for layer in kept if layer.name not in odd]
    if not kept:
        raise MemextError(f"spikesim: no layer of the table can be counted: {'; '.join(left)}")
    return kept, left


def _counted(kept: list[Layer], given: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
    names = [layer.name for layer in kept if layer.counted]
    for name, parts in given.items():
        if name not in names:
            raise MemextError(f"spikesim: counted_nj has {name!r}, which is no layer that is counted here; allowed: "
                              f"{', '.join(names)}")
        if not isinstance(parts, Mapping) or parts.keys() != set(PARTS) or not all(
                isinstance(value, int | float) and 0 <= value < math.inf for value in parts.values()):
            raise MemextError(f"spikesim: counted_nj[{name!r}] is {parts!r:.120}; allowed: a number from 0 on for each "
                              f"of {', '.join(PARTS)}")
    return given


def _layer(layer: Layer, placed: Placed | None, runs: int, hardware: Crossbars,
           counted: Mapping[str, Mapping[str, float]], latency_ns: float | None, lif_um2: float) -> SpikeSimLayer:
    pes, cycles, inputs = (0, 0, 0) if placed is None else (placed.pes, placed.pes * placed.positions * runs,
                                                            layer.inputs)  # None: neurons behind an addition, e.g.
    parts = dict.fromkeys(PARTS, 0.0)
    if placed is not None:
        parts = counted.get(layer.name) or {part: cycles * pj * 1e-3
                                            for part, pj in cycle_parts_pj(placed.places, hardware).items()}
    return SpikeSimLayer(layer.name, pes, cycles, latency_ns, **{f"{part}_nj": parts[part] for part in PARTS},
                         total_nj=sum(parts.values()), lif_area_um2=lif_um2, input_buffer_um2=memory_um2(inputs))


def _result(layers: tuple[SpikeSimLayer, ...], placed: Mapping[str, Placed], hardware: Crossbars, steps: int,
            rules: SpikeSimRules, compat: str | None, alone: float, left: tuple[str, ...],
            notes: tuple[str, ...]) -> SpikeSimResult:
    def total(name: str) -> float:
        return sum(getattr(layer, name) for layer in layers)

    tiles, tile_area = tiles_of(list(placed.values()), hardware, rules.fixed_crossbar_area)
    latency = None if any(layer.latency_ns is None for layer in layers) else total("latency_ns")
    lif, inputs, energy = total("lif_area_um2"), total("input_buffer_um2"), total("total_nj")
    return SpikeSimResult(latency, total("pe_cycles"), **{f"{part}_nj": total(f"{part}_nj") for part in PARTS},
                          total_nj=energy, edp_nj_ns=None if latency is None else energy * latency,
                          area_um2=tile_area + inputs + lif, tile_area_um2=tile_area, input_buffer_um2=inputs,
                          lif_area_um2=lif, lif_area_alone_um2=alone, pes=total("pes"), tiles=tiles, T=steps,
                          xbar_size=hardware.size, device=hardware.device, compat=compat, layers=layers,
                          not_counted=left, notes=notes)


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}" if value < 1e6 else f"{value:.0f}"
