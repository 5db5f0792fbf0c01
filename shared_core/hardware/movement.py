"""What moves between memories: standard against tick-batch order over T, and shared membranes against batch size.

Two figures of the papers are put beside what their own accounting gives:

    "Are SNNs Truly Energy-efficient?", Fig. 5(a): tick-batch saves 62.5 % of the movement energy of VGG9 at T = 4.
    EfficientLIF-Net, Fig. 10: layers that share a membrane save 23 % (CIFAR10) and 25 % (Tiny-ImageNet) of the DRAM
    traffic of VGG16, with 64 samples in a batch.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import MemextError
from ._rates import steps_of
from ._sata_rules import COMPAT
from ._sata_units import Array
from .sata import sata
from .table import LayerTable

__all__ = ["DramTraffic", "Movement", "dram_traffic", "lif_share", "movement"]

_DENSE = 0.0  # memory accesses do not depend on sparsity


@dataclass(frozen=True)
class Movement:
    """Energy of DRAM and on-chip buffers, of one sample.  saving: share of the standard order's that tick-batch saves.

    access_saving: the same without the buffers' leakage.  basis: how the standard order was counted.
    """

    T: int
    standard_nj: float
    tick_batch_nj: float
    saving: float
    access_saving: float
    basis: str

    def to_dict(self) -> dict:
        return asdict(self)


def movement(table: LayerTable, *, T: int | None = None, basis: str = "corrected", array: Array | None = None
             ) -> Movement:
    """Standard order (all layers in a time step, then the next) against tick-batch (all time steps of a layer).

    T: time steps; default: the table's.
    basis: "corrected": the output-stationary dataflow, membranes in DRAM between time steps; every spike that moves
        counts, in either order. "sata-2023", "sata-2024": that tool's accesses, which it counts once for all time
        steps, and for the standard order T times as many. The tools have no code for that order.
    Raises MemextError: no time steps, an unknown basis.
    """
    steps = steps_of("movement", table, T)
    array = Array() if array is None else array
    if basis == "corrected":
        tick = sata(table, T=steps, sparsity=_DENSE, array=array)
        standard = sata(table, T=steps, sparsity=_DENSE, array=array, dataflow="output-stationary")
        pairs = [(r.dram_nj + r.sram_nj, r.sram_leakage_nj) for r in (standard, tick)]
    elif basis in COMPAT:
        tick = sata(table, T=steps, sparsity=_DENSE, array=array, compat=basis)
        once = sata(table, T=1, sparsity=_DENSE, array=array, compat=basis)
        leak = tick.sram_leakage_nj
        moved = once.dram_nj + once.sram_nj - once.sram_leakage_nj
        pairs = [(steps * moved + leak, leak), (tick.dram_nj + tick.sram_nj, leak)]
    else:
        raise MemextError(f"movement: basis is {basis!r}; allowed: 'corrected', {', '.join(map(repr, COMPAT))}")
    (standard_nj, standard_leak), (tick_nj, tick_leak) = pairs
    return Movement(steps, standard_nj, tick_nj, 1 - tick_nj / standard_nj,
                    1 - (tick_nj - tick_leak) / (standard_nj - standard_leak), basis)


@dataclass(frozen=True)
class DramTraffic:
    """Bits to and from DRAM for a batch.  weights: once for the batch.  The rest: for every sample and time step;
    spikes are written by one layer and read by the next, membranes written and read."""

    batch: int
    T: int
    weight_bits: int
    spike_bits: int
    membrane_bits: int

    @property
    def total_bits(self) -> int:
        return self.weight_bits + self.spike_bits + self.membrane_bits

    def to_dict(self) -> dict:
        return {**asdict(self), "total_bits": self.total_bits}


def dram_traffic(table: LayerTable, *, batch: int = 1, T: int | None = None, weight_width: int = 32,
                 spike_width: int = 1, membrane_width: int = 32) -> DramTraffic:
    """DRAM traffic of the standard order (layer after layer in every time step), by EfficientLIF-Net's Section IV-D:
    a membrane is read and written once in each time step for all layers that share it. No closer model is printed
    there; widths are those of its Section V-C (weights 32 bits, spikes 1, membranes 32).

    table: as it is, or table.with_sharing(layers=...).  batch: samples that share one pass over the weights.
    Raises MemextError: no time steps, a batch or width that is no positive whole number.
    """
    steps = steps_of("dram_traffic", table, T)
    for name, value in dict(batch=batch, weight_width=weight_width, spike_width=spike_width,
                            membrane_width=membrane_width).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MemextError(f"dram_traffic: {name} is {value!r}; allowed: whole numbers from 1 on")
    membranes = {layer.membrane or f"of {layer.name}": layer.membranes for layer in table}
    weights = sum(layer.weights for layer in table)
    spikes = sum((layer.inputs + layer.outputs) * layer.runs(steps, table.T) for layer in table if layer.counted)
    return DramTraffic(batch, steps, weights * weight_width, batch * spikes * spike_width,
                       batch * steps * 2 * sum(membranes.values()) * membrane_width)


def lif_share(sharing: int, share: float = 0.616) -> float:
    """Share of LIF units in the area of the computation units when n groups of channels share one (C#n).

    share: without sharing; default: EfficientLIF-Net's 61.6 % (SATA's own constants give 57.1 %; see SataResult).
    Raises MemextError: sharing below 1, share outside 0 to 1.
    """
    if isinstance(sharing, bool) or not isinstance(sharing, int) or sharing < 1 or not 0 <= share <= 1:
        raise MemextError(f"lif_share: sharing={sharing!r}, share={share!r}; allowed: a number of groups from 1 on, "
                          "and a share from 0 to 1")
    rest = share / sharing
    return rest / (rest + 1 - share)
