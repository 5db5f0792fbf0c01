"""What a network costs on hardware: energy, cycles, latency and area, from closed forms. Nothing is simulated.

    table = layer_table(net, sample)                  # or LayerTable.from_rows([...]), .from_csv, .from_json
    print(estimate(table).table())                    # operations only, by two papers' formulas
    print(sata(table).table())                        # a systolic array with its memories

table.py        LayerTable: the layers of a network, the only input of every model
_layers.py      one layer, as a matrix product
_collect.py     layer_table: a table from a SpikingJelly or snnTorch network, run once on real input
_rates.py       time steps and rates, as every model asks for them
estimate.py     estimate: "Are SNNs Truly Energy-efficient?" Table II, T-RevSNN Eq. 13
sata.py         sata: energy, cycles and area on SATA's systolic array
_sata_units.py    its constants: logic, memories, the array
_sata_rules.py    where the published tools count in a way that is corrected here
_sata_counts.py   cycles and accesses of a layer, in three dataflows
_sata_buffer.py   what a layer's inputs cost in DRAM fetches
_sata_energy.py   counts times constants
movement.py     standard against tick-batch order, shared membranes against batch size, LIF units' share of the area
report.py       costs: the models side by side; text, JSON, PNG, two runs compared
command.py      what `memext energy` does
"""
from ._collect import layer_table
from ._layers import Layer
from .estimate import Estimate, LayerEstimate, estimate, operations_nj
from .movement import DramTraffic, Movement, dram_traffic, lif_share, movement
from .report import Costs, compare, costs
from .sata import CORRECTED, SATA_2023, SATA_2024, Accesses, Array, Memory, Rules, SataLayer, SataResult, sata
from .table import LayerTable

__all__ = ["CORRECTED", "SATA_2023", "SATA_2024", "Accesses", "Array", "Costs", "DramTraffic", "Estimate", "Layer",
           "LayerEstimate", "LayerTable", "Memory", "Movement", "Rules", "SataLayer", "SataResult", "compare", "costs",
           "dram_traffic", "estimate", "layer_table", "lif_share", "movement", "operations_nj", "sata"]
