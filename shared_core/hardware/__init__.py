"""What a network costs on hardware: energy, cycles, latency and area, from closed forms; and what it computes there:
early exit, crossbars.

    table = layer_table(net, sample)                  # or LayerTable.from_rows([...]), .from_csv, .from_json
    print(estimate(table).table())                    # operations only, by two papers' formulas
    print(sata(table).table())                        # a systolic array with its memories
    print(spikesim(table).table())                    # crossbars

table.py        LayerTable: the layers of a network, the only input of every model
_layers.py      one layer, as a matrix product
_collect.py     layer_table: a table from a SpikingJelly or snnTorch network, run once on real input
_watch.py       what runs while a network is watched
_rates.py       time steps and rates, as every model asks for them
estimate.py     estimate: "Are SNNs Truly Energy-efficient?" Table II, T-RevSNN Eq. 13
sata.py         sata: energy, cycles and area on SATA's systolic array
_sata_units.py    its constants: logic, memories, the array
_sata_rules.py    where the published tools count in a way that is corrected here
_sata_counts.py   cycles and accesses of a layer, in three dataflows
_sata_buffer.py   what a layer's inputs cost in DRAM fetches
_sata_energy.py   counts times constants
spikesim.py     spikesim: energy, latency and area on SpikeSim's crossbars
_spikesim_units.py  its constants: energy of a PE-cycle, areas
_spikesim_map.py    how layers lie on crossbars: PEs, PE-cycles, tiles
_spikesim_rules.py  where the published tool counts in a way that is corrected here
early_exit.py   early_exit: each sample stops when the network is sure (DT-SNN); calibration, costs in the mean
_exit_step.py     one step of a network of any form
_exit_state.py    where states are, and how they are gathered when samples leave
_exit_probe.py    finds that out on three samples, or says what cannot be gathered
_exit_calibrate.py  a threshold for an accuracy or a number of steps
_exit_report.py   expected energy, latency and EDP, by all models
_exit_command.py  what `memext energy --compare` does with threshold= and exits=
movement.py     standard against tick-batch order, shared membranes against batch size, LIF units' share of the area
report.py       costs: the models side by side; text, JSON, PNG, two runs compared
command.py      what `memext energy` does
crossbar/       Crossbar: what noise, wires and converters do to accuracy; weight encoding, batch-norm adaptation
"""
from ._collect import layer_table
from ._layers import Layer
from .crossbar import NICE, Cell, Crossbar, adapt_batch_norm, column_current, encode_weights
from .early_exit import Calibration, EarlyExit, ExitReport, ExitResult, early_exit, exit_costs, exits_on
from .estimate import Estimate, LayerEstimate, estimate, operations_nj
from .movement import DramTraffic, Movement, dram_traffic, lif_share, movement
from .report import Costs, compare, costs
from .sata import CORRECTED, SATA_2023, SATA_2024, Accesses, Array, Memory, Rules, SataLayer, SataResult, sata
from .spikesim import (
    CORRECTED_SPIKESIM,
    PUBLISHED_SPIKESIM,
    REFERENCES,
    SpikeSimLayer,
    SpikeSimResult,
    SpikeSimRules,
    spikesim,
)
from .table import LayerTable

__all__ = ["CORRECTED", "CORRECTED_SPIKESIM", "NICE", "PUBLISHED_SPIKESIM", "REFERENCES", "SATA_2023", "SATA_2024",
           "Accesses", "Array", "Calibration", "Cell", "Costs", "Crossbar", "DramTraffic", "EarlyExit", "Estimate",
           "ExitReport", "ExitResult", "Layer", "LayerEstimate", "LayerTable", "Memory", "Movement", "Rules",
           "SataLayer", "SataResult", "SpikeSimLayer", "SpikeSimResult", "SpikeSimRules", "adapt_batch_norm",
           "column_current", "compare", "costs", "dram_traffic", "early_exit", "encode_weights", "estimate",
           "exit_costs", "exits_on", "layer_table", "lif_share", "movement", "operations_nj", "sata", "spikesim"]
