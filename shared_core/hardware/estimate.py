"""Energy by the papers' closed formulas, side by side. Both count operations only: no memory, no data movement.

    table II: E = FLOPs * T * (1 - sparsity) * E_AC                      "Are SNNs Truly Energy-efficient?", Table II
    Eq. 13:   E = E_MAC * FL[1] + E_AC * T * sum(FL[l] * fr[l], l >= 2)  T-RevSNN, appendix B: first layer once

E_AC of table II is that of an 8-bit accumulation in 28 nm (adder and register, at 250 MHz), E_MAC and E_AC of Eq. 13
those of 32-bit floating point in 45 nm (Horowitz 2014). FLOPs are multiply-adds, one for each.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import MemextError
from ..report import text_table
from ._layers import Layer
from ._rates import not_counted, rates_of, steps_of
from .table import LayerTable

__all__ = ["E_AC_45NM_PJ", "E_AC_INT8_PJ", "E_MAC_45NM_PJ", "Estimate", "LayerEstimate", "estimate", "operations_nj"]

_MULTIPLIER_MW, _ADDER_MW, _REGISTER_MW = 0.0821, 0.01689, 0.01249  # 8 bits, 28 nm
_CLOCK_MHZ = 250  # of the published estimates; SATA itself runs at 400
E_AC_INT8_PJ = (_ADDER_MW + _REGISTER_MW) / _CLOCK_MHZ * 1000
E_MAC_45NM_PJ, E_AC_45NM_PJ = 4.6, 0.9


@dataclass(frozen=True)
class LayerEstimate:
    """macs: of one evaluation.  rate: share of them that is carried out.  runs: evaluations for one sample."""

    name: str
    macs: int
    rate: float
    runs: int
    table2_nj: float
    eq13_nj: float


@dataclass(frozen=True)
class Estimate:
    """Of one sample.  ann_nj: all operations once, as multiply-accumulates of Eq. 13: the same net without spikes.

    not_counted: layers that these formulas have no term for, with the reason.  notes: what a reader should know.
    """

    table2_nj: float
    eq13_nj: float
    ann_nj: float
    T: int
    layers: tuple[LayerEstimate, ...]
    not_counted: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        """A line per layer, and the sums."""
        rows = [(x.name, x.macs, x.runs, f"{x.rate:.4f}", f"{x.table2_nj:.4f}", f"{x.eq13_nj:.4f}")
                for x in self.layers]
        rows.append(("total", sum(x.macs for x in self.layers), "", "", f"{self.table2_nj:.4f}", f"{self.eq13_nj:.4f}"))
        text = text_table(rows, ("layer", "MACs", "runs", "rate", "Table II, nJ", "Eq. 13, nJ"))
        more = [f"not counted: {name}" for name in self.not_counted] + [f"note: {note}" for note in self.notes]
        return "\n".join([text, *more])


def estimate(table: LayerTable, *, T: int | None = None, sparsity: float | str | None = None,
             e_ac_pj: float = E_AC_INT8_PJ, e_mac_eq13_pj: float = E_MAC_45NM_PJ, e_ac_eq13_pj: float = E_AC_45NM_PJ
             ) -> Estimate:
    """Energy of one sample by both formulas.

    T: time steps; default: the table's.
    sparsity: share of inputs that are 0, the same in all layers; None: each layer's own, as 1 - input_rate; "weights":
        1 - input_rate * (1 - weight_sparsity), which also skips zero weights.
    e_ac_pj: of table II.  e_mac_eq13_pj, e_ac_eq13_pj: of Eq. 13. In picojoules.
    The first layer's operations count once, as multiply-accumulates, in Eq. 13; they are accumulations like the others'
    where the table says that its input is spikes (real_input is False).
    Raises MemextError: no time steps; no sparsity for a layer; a sparsity outside 0 to 1.
    """
    steps = steps_of("estimate", table, T)
    rates = rates_of("estimate", table, sparsity)
    first = next(layer for layer in table if layer.counted)
    rows, notes = [], []
    for layer in table:
        if not layer.counted:
            continue
        runs, rate = layer.runs(steps, table.T), rates[layer.name]
        table2 = layer.macs * runs * rate * e_ac_pj * 1e-3
        if layer is first and layer.real_input is not False:
            eq13 = layer.macs * e_mac_eq13_pj * 1e-3
        else:
            eq13 = layer.macs * runs * rate * e_ac_eq13_pj * 1e-3
            if layer.real_input:
                notes.append(f"{layer.name}: its input is not only 0 and 1; its multiplications count as accumulations")
        rows.append(LayerEstimate(layer.name, layer.macs, rate, runs, table2, eq13))
    return Estimate(sum(row.table2_nj for row in rows), sum(row.eq13_nj for row in rows),
                    sum(row.macs * _dense_runs(layer, steps, table.T) for row, layer in _pairs(rows, table))
                    * e_mac_eq13_pj * 1e-3,
                    steps, tuple(rows), not_counted(table, "no synaptic operations in these formulas"), tuple(notes))


def operations_nj(additions: float, multiplications: float, clock_mhz: float = _CLOCK_MHZ) -> float:
    """Energy of reported numbers of operations, 8-bit adders and multipliers: how Table II's TDBN row was estimated."""
    if min(additions, multiplications) < 0 or clock_mhz <= 0:
        raise MemextError(f"operations_nj: additions={additions}, multiplications={multiplications}, "
                          f"clock_mhz={clock_mhz}; allowed: numbers from 0 on, and a positive clock")
    return (additions * _ADDER_MW + multiplications * _MULTIPLIER_MW) / clock_mhz


def _pairs(rows: list[LayerEstimate], table: LayerTable) -> list[tuple[LayerEstimate, Layer]]:
    return list(zip(rows, (layer for layer in table if layer.counted)))


def _dense_runs(layer: Layer, steps: int, table_steps: int | None) -> int:
    """How often the layer would run if there were no time: once, or once for each use in a step."""
    return max(1, layer.runs(steps, table_steps) // steps)
