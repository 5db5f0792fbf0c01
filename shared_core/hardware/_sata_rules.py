"""Where the published SATA tools count in a way that their paper, or sense, does not support: one rule each.

A rule's value in CORRECTED is what this package does by default. SATA_2023 is the tool that "Are SNNs Truly
Energy-efficient?" links to, SATA_2024 its successor; with their rules the figures are those tools', to the digit.
"""
from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import MemextError

__all__ = ["COMPAT", "CORRECTED", "SATA_2023", "SATA_2024", "Rules", "rules_of"]


@dataclass(frozen=True)
class Rules:
    """padding_assumed: cycles and accesses take no padding, operations take a padding of 1, whatever the layer has.
    linear_as_3x3: an operation count that pads a linear layer to 3x3, and so counts it 9 times.
    spike_bits: of one input or output activation in memory.
    block_per_element: each element that moves costs the energy of a whole memory block.
    one_bank_leaks: of the buffers' two banks.
    cacti_leakage: a bit of the buffers leaks 42 to 48 nW, as CACTI has it, and one of the logic's registers 2.5.
        Corrected, it leaks like the latter; a register bit has four times the transistors.
    merged_runs: cycles of tick-batch are those of two simulated runs added up, an output-stationary one for each time
        step and a weight-stationary one up to its last weight; corrected, weights come while pixels stream.
    dram_write_as_read: a DRAM write costs what a read does.
    ungated: AND gate, adder, comparator, subtractor and two register files burn every cycle in every PE, used or not.
    tile_artefacts: tile sizes are added to the counts of outputs written.
    input_steps, output_steps: the memory accesses of inputs, and of outputs, are counted for every time step, rather
        than once.  output_dram_steps: those of outputs in DRAM, too.
    real_input_bits: an input that is no spikes (the first layer's) has 8 bits.
    neurons_everywhere: every output has a neuron, also where the table says that there is none.
    rounded: power figures have 6 decimals, and operations are cut to whole numbers.
    """

    padding_assumed: bool
    linear_as_3x3: bool
    spike_bits: int
    block_per_element: bool
    one_bank_leaks: bool
    cacti_leakage: bool
    merged_runs: bool
    dram_write_as_read: bool
    ungated: bool
    tile_artefacts: bool
    input_steps: bool
    output_steps: bool
    output_dram_steps: bool
    real_input_bits: bool
    neurons_everywhere: bool
    rounded: bool


_PUBLISHED = dict(padding_assumed=True, block_per_element=True, one_bank_leaks=True, cacti_leakage=True,
                  merged_runs=True, dram_write_as_read=True, ungated=True, tile_artefacts=True, input_steps=False,
                  output_dram_steps=False, real_input_bits=False, neurons_everywhere=True, rounded=True)
SATA_2023 = Rules(**_PUBLISHED, linear_as_3x3=True, spike_bits=8, output_steps=False)
SATA_2024 = Rules(**_PUBLISHED, linear_as_3x3=False, spike_bits=1, output_steps=True)
CORRECTED = Rules(padding_assumed=False, linear_as_3x3=False, spike_bits=1, block_per_element=False,
                  one_bank_leaks=False, cacti_leakage=False, merged_runs=False, dram_write_as_read=False, ungated=False,
                  tile_artefacts=False, input_steps=True, output_steps=True, output_dram_steps=True,
                  real_input_bits=True, neurons_everywhere=False, rounded=False)
COMPAT = {"sata-2023": SATA_2023, "sata-2024": SATA_2024}


def rules_of(where: str, compat: str | None, rules: Rules | None) -> Rules:
    if rules is not None and compat is not None:
        raise MemextError(f"{where}: both compat={compat!r} and rules= were given; pass one of them")
    if isinstance(rules, Rules):
        return rules
    if rules is not None or compat not in (None, *COMPAT):
        raise MemextError(f"{where}: compat is {compat!r} and rules {rules!r:.60}; allowed: compat=None (corrected), "
                          f"{', '.join(map(repr, COMPAT))}, or rules=dataclasses.replace(CORRECTED, ...) of "
                          f"{', '.join(f.name for f in fields(Rules))}")
    return CORRECTED if compat is None else COMPAT[compat]
