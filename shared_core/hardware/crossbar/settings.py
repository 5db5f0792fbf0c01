"""`Crossbar`: how crossbars are built, and how far from ideal; puts a network's layers on them and takes it back."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ...errors import MemextError
from . import _entering
from .cells import OPEN_OHM, Cell
from .encoding import ENCODINGS, SCALES
from .report import CrossbarReport

__all__ = ["NICE", "Crossbar"]

ROWS, INPUTS = ("packed", "kernel"), ("digital", "analog", "refuse")


@dataclass(frozen=True)
class Crossbar:
    """Crossbars that compute a network's convolutions and linear layers; ideal but for `bits`, unless told otherwise.

    size: rows, and columns, of a crossbar.
    bits, scale: of the weights (see encode_weights); two or more bits, sign included.
    cell: resistances and bits of a cell.  A weight takes as many cells as its bits need (bit slicing).
    encoding, shift: how signed weights become numbers for cells (see encode_weights).
    rows: "packed", a layer's inputs fill the rows one after the other; "kernel", as in SpikeSim: a crossbar has
        channels of one place in the kernel only.
    wire_ohm: of a column's wire from one row to the next (IR drop, see column_current).
    variation: of the programmed devices: each conductance is multiplied by 1 + variation * N(0, 1) when the weights are
        written, and stays so.
    read_noise: the same for each cell anew in every read, as one normal deviate of a column with the sum of its cells'
        variances: exactly that for r = 0; with IR drop, each cell's current is taken without the wire's voltage.
    adc_bits: None, the currents are scaled and not rounded; else they are rounded and clipped.
    adc_max: the current at full scale, in that of the number 1; None: 2^adc_bits - 1, steps of one; "column": all
        that a column of `size` cells can carry.
    reference: a column of cells in the lowest state is subtracted from every other before the ADC, so that 0 reads 0.
    inputs: what layers do that are given other values than 0 and 1 (mostly the first one). "digital": the quantised
        weights are used without crossbars. "analog": rows are at voltages in proportion. "refuse": MemextError.
    linear: whether linear layers are put on crossbars, too.
    seed: of variation and read noise. A layer's draws follow from seed, its name and its number of reads.
    Raises MemextError: a value outside of these.
    """

    size: int = 64
    bits: int = 4
    cell: Cell = field(default_factory=Cell)
    encoding: str = "shifted"
    shift: int | None = None
    scale: str = "layer"
    rows: str = "packed"
    wire_ohm: float = 0.0
    variation: float = 0.0
    read_noise: float = 0.0
    adc_bits: int | None = None
    adc_max: float | str | None = None
    reference: bool = True
    inputs: str = "digital"
    linear: bool = True
    seed: int = 0

    def __post_init__(self):
        def need(good: bool, name: str, allowed: str) -> None:
            if not good:
                raise MemextError(f"Crossbar: {name} is {getattr(self, name)!r}; allowed: {allowed}")

        whole = lambda v, low, high=math.inf: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high  # noqa: E731
        need(whole(self.size, 1), "size", "whole numbers from 1 on")
        need(whole(self.bits, 2, 8), "bits", "whole numbers from 2 to 8")
        need(isinstance(self.cell, Cell), "cell", "a Cell")
        for name, values in (("encoding", ENCODINGS), ("scale", SCALES), ("rows", ROWS), ("inputs", INPUTS)):
            need(getattr(self, name) in values, name, ", ".join(map(repr, values)))
        for name in ("wire_ohm", "variation", "read_noise"):
            value = getattr(self, name)
            need(isinstance(value, int | float) and 0 <= value < math.inf, name, "numbers from 0 on")
        need(self.adc_bits is None or whole(self.adc_bits, 1, 24), "adc_bits", "None, or whole numbers from 1 to 24")
        need(self.adc_max in (None, "column") or (isinstance(self.adc_max, int | float)
                                                     and 0 < self.adc_max < math.inf),
             "adc_max", "None, 'column', or a positive number")
        need(self.adc_max is None or self.adc_bits is not None, "adc_max", "None without adc_bits")
        need(self.encoding == "shifted" or self.shift is None, "shift", "None, but with encoding='shifted'")
        need(self.encoding != "signed-top" or self.cell.bits == 1, "cell", "cells of one bit for encoding='signed-top'")
        need(whole(self.seed, 0), "seed", "whole numbers from 0 on")

    @property
    def adc_step(self) -> float | None:
        """Of the ADC, in the current of the number 1; None without one."""
        if self.adc_bits is None or self.adc_max is None:
            return None if self.adc_bits is None else 1.0
        top = self.size * self.cell.highest if self.adc_max == "column" else self.adc_max
        return top / (2 ** self.adc_bits - 1)

    def convert(self, net: nn.Module, skip: Sequence[str] = ()) -> nn.Module:
        """Puts the convolutions (1-D, 2-D) and linear layers of `net` on crossbars, in place, and returns it.

        skip: names of layers to leave, or patterns ("features.*").
        The objects stay the same, with their parameters, state_dict, hooks, deepcopy and pickle. Weights are written at
        a layer's first read, and again when they have changed. Outputs have no gradient. Biases, batch norm and neurons
        are digital and stay as they are.
        Raises MemextError, and changes nothing: no such layer; one that is on crossbars already; weights that cannot be
            stored; a layer that this cannot compute (transposed or 3-D convolution, its own forward) and skip does not
            name.
        """
        return _entering.enter(self, net, skip)

    @staticmethod
    def restore(net: nn.Module) -> nn.Module:
        """Takes the layers of `net` off their crossbars, in place, and returns it.

        Raises MemextError, and changes nothing: none is on crossbars; one was changed again afterwards.
        """
        return _entering.leave_all(net)

    @staticmethod
    def report(net: nn.Module) -> CrossbarReport:
        """What is on crossbars, how many these are, and how often they were read. Raises MemextError: nothing is."""
        return _entering.report(net)


# SpikeSim's NICE as published, 4-bit: the currents are scaled and neither rounded nor clipped, wires are ideal, there
# is no noise; the current of cells that are off is not taken away, 2^3 is added to negative weights in every layer, and
# linear layers are computed in software.
NICE = Crossbar(bits=4, cell=Cell(4, off_ohm=OPEN_OHM, parallel=True), shift=3, scale="fixed", rows="kernel",
                reference=False, linear=False)
