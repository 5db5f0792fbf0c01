"""The current at the foot of a crossbar column whose wire has a resistance (IR drop).

Row i puts the voltage V[i] on one end of its cell of resistance R[i] = 1/G[i]; the other end is on the column wire, in
which r ohms lie between one row and the next, and between the last row and the amplifier, which is at 0 V. The current
x[i] in the wire behind row i obeys

    -(R[i] + R[i+1] + r) * x[i] + R[i] * x[i-1] + R[i+1] * x[i+1] = -(V[i] - V[i+1])
    -(R[n] + r) * x[n] + R[n] * x[n-1] = -V[n]

with x[0] = 0; x[n] is what is read (SpikeSim, NICE; "Are SNNs Truly Energy-efficient?", Fig. 1). Row wires are ideal.
The matrix is tridiagonal, the same for all inputs, and rows without a spike are at 0 V, not open. So x[n] is a sum
over rows of V[i] times a number that depends on the column alone, which one elimination gives for all inputs there
will ever be. In conductances it needs no division by r and takes r = 0 like any other:

    Y[1] = G[1];  Y[i] = G[i] + Y[i-1] / (1 + r * Y[i-1])   what hangs on row i's node from above, its cell included
    s[n] = 1 / (1 + r * Y[n]);  s[i] = s[i+1] / (1 + r * Y[i])  share of a current at that node that reaches the foot
    x[n] = sum_i s[i] * G[i] * V[i]

Tests solve the equations above, and the nodes of the circuit, as dense matrices in float64, and compare.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ...errors import MemextError
from .cells import READ_VOLT

__all__ = ["column_current", "effective_conductance"]


def effective_conductance(conductance: Tensor, wire_ohm: float) -> Tensor:
    """s * G: what a volt on a row adds to the current at the foot of its column.

    conductance: [rows, ...], float64, siemens; the foot is after the last row.  wire_ohm: r, from one row to the next.
    Returns: [rows, ...], siemens; `conductance` itself where wire_ohm is 0.
    """
    if wire_ohm == 0:
        return conductance
    drops = torch.empty_like(conductance)  # 1 / (1 + r * Y[i])
    above = torch.zeros_like(conductance[0])
    for i, g in enumerate(conductance):
        above = g + above
        drops[i] = 1 / (1 + wire_ohm * above)
        above = above * drops[i]
    share = torch.ones_like(above)
    for i in reversed(range(len(drops))):
        share = share * drops[i]
        drops[i] = share
    return drops.mul_(conductance)


def column_current(conductance: Tensor, spikes: Tensor | None = None, *, wire_ohm: float = 0.0,
                   read_volt: float = READ_VOLT) -> Tensor:
    """Amperes at the foot of each column.

    conductance: [rows, ...], siemens, of the cells (Cell.conductance).  spikes: [rows] or [rows, ...], 0 and 1 (or
    shares of read_volt); None: all 1.  wire_ohm: of the column wire, from one row to the next.
    Returns: the shape of `conductance` without its first dimension, float64.
    Raises MemextError: no rows; a negative conductance or resistance; spikes of another number of rows.
    """
    if conductance.dim() < 1 or not len(conductance):
        raise MemextError(f"column_current: conductance has shape {tuple(conductance.shape)}; [rows, ...] with at "
                          "least one row is needed")
    if not wire_ohm >= 0 or not bool((conductance >= 0).all()):
        raise MemextError(f"column_current: wire_ohm is {wire_ohm!r}, the least conductance "
                          f"{conductance.min().item():g}; allowed: none below 0")
    g = conductance.double()
    volts = torch.ones_like(g[:, ...]) if spikes is None else spikes.double()
    if volts.dim() == 0 or len(volts) != len(g) or volts.dim() > g.dim():
        raise MemextError(f"column_current: spikes have shape {tuple(volts.shape)} and conductance "
                          f"{tuple(g.shape)}; allowed: [rows], or the shape of conductance")
    volts = volts.reshape(len(g), *(1,) * (g.dim() - volts.dim()), *volts.shape[1:])
    return (effective_conductance(g, float(wire_ohm)) * volts * read_volt).sum(0)
