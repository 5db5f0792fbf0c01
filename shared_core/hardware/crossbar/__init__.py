"""Networks on crossbars of resistive cells (RRAM), and what their imperfections do to accuracy.

    crossbar = Crossbar(wire_ohm=2.0, read_noise=0.1, adc_bits=6)
    crossbar.convert(net)                 # in place; Crossbar.restore(net) undoes it
    adapt_batch_norm(net, loader)         # running statistics of what the crossbars really give

settings.py   Crossbar: how they are built, convert, restore, report; NICE: as published
cells.py      Cell: states of a cell, their resistances
encoding.py   signed weights as numbers for cells
column.py     the current of a column with wire resistance
_program.py   a layer's weights written into crossbars
_reads.py     one read: noise, ADC, shift and add
modules.py    torch.nn's layers on crossbars
_entering.py  which layers are changed, and the way back
adapt.py      adapt_batch_norm
report.py     what is on crossbars
"""
from .adapt import adapt_batch_norm
from .cells import Cell
from .column import column_current, effective_conductance
from .encoding import Encoded, encode_weights
from .report import CrossbarLayer, CrossbarReport
from .settings import NICE, Crossbar

__all__ = ["NICE", "Cell", "Crossbar", "CrossbarLayer", "CrossbarReport", "Encoded", "adapt_batch_norm",
           "column_current", "effective_conductance", "encode_weights"]
