"""What a resistive memory cell (RRAM) can be set to: conductances of its states."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import MemextError

__all__ = ["OFF_OHM", "ON_OHM", "OPEN_OHM", "READ_VOLT", "Cell"]

ON_OHM, OFF_OHM = 19139.0, 200e3  # SpikeSim's NICE: the on state, and the off state of its 1-bit mode
OPEN_OHM = 1e8                    # the off state of a bit in its 4- and 8-bit modes
READ_VOLT = 0.1                   # on a row with a spike; the others are at 0 V


@dataclass(frozen=True)
class Cell:
    """A cell that holds a whole number from 0 (highest resistance) to 2^bits - 1.

    bits: per cell.  on_ohm, off_ohm: resistance of the highest and the lowest state; their ratio is the on/off ratio.
    parallel: how more than one bit is held. False: one device with states evenly spaced in conductance,
        G(n) = G_off + n * (G_on - G_off) / (2^bits - 1). True: as in NICE, a device per bit side by side, bit k with
        2^k / on_ohm when it is set and 1 / off_ohm when not, so on_ohm is the resistance of the number 1.
    Raises MemextError: bits outside 1 to 8, resistances that are not 0 < on_ohm < off_ohm.
    """

    bits: int = 1
    on_ohm: float = ON_OHM
    off_ohm: float = OFF_OHM
    parallel: bool = False

    def __post_init__(self):
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 1 <= self.bits <= 8:
            raise MemextError(f"Cell: bits is {self.bits!r}; allowed: whole numbers from 1 to 8")
        if not 0 < self.on_ohm < self.off_ohm < math.inf:
            raise MemextError(f"Cell: on_ohm is {self.on_ohm!r} and off_ohm {self.off_ohm!r}; allowed: "
                              "0 < on_ohm < off_ohm, in ohms")

    @property
    def highest(self) -> int:
        """The largest number it can hold."""
        return 2 ** self.bits - 1

    @property
    def unit(self) -> float:
        """Siemens that stand for 1."""
        if self.parallel:
            return 1 / self.on_ohm
        return (1 / self.on_ohm - 1 / self.off_ohm) / self.highest

    def conductance(self, numbers: Tensor) -> Tensor:
        """Siemens, float64, of cells that hold `numbers` (whole, any shape).

        Raises MemextError: a number outside 0 to 2^bits - 1.
        """
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) <= self.highest:
            raise MemextError(f"Cell: the numbers to hold go from {int(numbers.min())} to {int(numbers.max())}; "
                              f"allowed in {self.bits} bit{'s' * (self.bits > 1)}: 0 to {self.highest}")
        if not self.parallel:
            return 1 / self.off_ohm + numbers.double() * self.unit
        found = torch.zeros(numbers.shape, dtype=torch.float64, device=numbers.device)
        for k in range(self.bits):
            bit = (numbers >> k & 1).double()
            found += bit * (2 ** k / self.on_ohm) + (1 - bit) / self.off_ohm
        return found

    def off_share(self, numbers: Tensor) -> float:
        """Share of devices in the state of highest resistance."""
        if not self.parallel:
            return (numbers == 0).double().mean().item()
        return sum((numbers >> k & 1 == 0).double().mean().item() for k in range(self.bits)) / self.bits
