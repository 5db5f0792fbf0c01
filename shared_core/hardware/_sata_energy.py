"""From counts to energy. mW * ns is 1e-3 nJ."""
from __future__ import annotations

from typing import NamedTuple

from ._sata_counts import Accesses, Run
from ._sata_rules import Rules
from ._sata_units import Array, Group, Memory, register_leakage_mw

__all__ = ["Energy", "buffer_leakage_nj", "energy"]


class Energy(NamedTuple):
    """In nJ. compute is the sum of spike_mac, lif and spad; leakage is a part of sram."""

    spike_mac: float
    lif: float
    spad: float
    dram: float
    sram: float
    leakage: float

    @property
    def compute(self) -> float:
        return self.lif + self.spike_mac + self.spad

    @property
    def total(self) -> float:
        return self.compute + self.dram + self.sram


def energy(cycles: int, macs: float, updates: float, moved: Accesses, real_input: bool, run: Run,
           groups: dict[str, Group]) -> Energy:
    """real_input: the moved inputs are no spikes."""
    ns, units = cycles * run.array.cycle_ns, run.array.elements
    parts = {"spike_mac": (macs, units), "lif": (updates, run.lif_units), "spad": (macs, units)}
    found = {name: _logic(groups[name], operations, ns, count, run) for name, (operations, count) in parts.items()}
    leakage = buffer_leakage_nj(ns, run.array, run.rules)
    return Energy(**found, dram=_dram(moved, real_input, run), sram=_sram(moved, real_input, run) + leakage,
                  leakage=leakage)


def buffer_leakage_nj(ns: float, array: Array, rules: Rules) -> float:
    """Of the three buffers on the chip, in so many ns."""
    power = 0.0
    for memory in (array.weights, array.ifmap, array.ofmap):
        if rules.cacti_leakage or not memory.size_bits:
            bank = memory.leakage_mw
        else:
            bank = register_leakage_mw(memory.size_bits) / memory.banks
        power += bank * (1 if rules.one_bank_leaks else memory.banks)
    return power * ns * 1e-3


def _logic(group: Group, operations: float, ns: float, units: int, run: Run) -> float:
    tau = run.array.cycle_ns
    used = group.gated_mw * operations * tau
    # Units that nothing gates burn in every cycle; where zero operands are skipped, only in cycles that use them.
    idle = group.ungated_mw * (ns * units if run.rules.ungated else operations * tau)
    return (used + idle + group.leakage_mw * ns * units) * 1e-3


def _element(nj: float, bits: int, memory: Memory, run: Run) -> float:
    """Energy of one element of so many bits: its share of a block; in the published tools the whole block's, which
    the later one scales by bits / 8."""
    return nj * bits / (8 if run.rules.block_per_element else memory.block_bits)


def _input_bits(real_input: bool, run: Run) -> int:
    return 8 if real_input and run.rules.real_input_bits else run.rules.spike_bits


def _dram(moved: Accesses, real_input: bool, run: Run) -> float:
    dram, rules, array = run.array.dram, run.rules, run.array
    write = dram.read_nj if rules.dram_write_as_read else dram.write_nj
    return (moved.dram_inputs * _element(dram.read_nj, _input_bits(real_input, run), dram, run)
            + moved.dram_weights * _element(dram.read_nj, array.weight_bits, dram, run)
            + moved.dram_outputs * _element(write, rules.spike_bits, dram, run)
            + moved.dram_membranes * _element((dram.read_nj + write) / 2, array.membrane_bits, dram, run))


def _sram(moved: Accesses, real_input: bool, run: Run) -> float:
    array, rules = run.array, run.rules
    sums = (array.ofmap.read_nj + array.ofmap.write_nj) / 2
    return (moved.sram_inputs * _element(array.ifmap.read_nj, _input_bits(real_input, run), array.ifmap, run)
            + moved.sram_weights * _element(array.weights.read_nj, array.weight_bits, array.weights, run)
            + moved.sram_outputs * _element(array.ofmap.write_nj, rules.spike_bits, array.ofmap, run)
            + moved.sram_sums * _element(sums, array.psum_bits, array.ofmap, run))
