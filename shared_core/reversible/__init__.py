"""Networks whose past is computed back instead of kept.

neuron.py       RevSNN's neuron: multi_step, invert, is_invertible; _equations.py has the equations, _torch.py their
                plain form; _native.py and _cuda.py call the kernels, _range.py checks what they found
coupling.py     ReversibleBlock, ReversibleSequence: in depth, y1 = x1 + F(x2), y2 = x2 + G(y1)
_coupled.py     their autograd node; _coupling.py: one pass through the blocks
columns.py      Columns: in time, T sub-networks joined by neurons that carry a state (T-RevSNN)
_parts.py       F and G with all that they read, to run them again without anyone noticing
_grid.py        the grid on which sums are exact
"""
from ._parts import is_rebuilding
from .columns import Columns
from .coupling import ReversibleBlock, ReversibleSequence

__all__ = ["Columns", "ReversibleBlock", "ReversibleSequence", "is_rebuilding"]
