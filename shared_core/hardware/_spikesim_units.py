"""SpikeSim's parts: energy of a PE-cycle and areas, 65 nm, 8-bit weights, as the published tool has them.

Energy in pJ, area in um^2. X is the size of a crossbar (rows = columns). A processing element (PE) holds a crossbar for
each place of the kernel; X / 8 converters read its columns, 8 each. Eight PEs make a tile.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import MemextError

__all__ = ["COLUMNS_PER_ADC", "DEVICES", "PARTS", "Crossbars", "cycle_parts_pj", "memory_um2", "pe_area_um2",
           "tile_area_um2"]

COLUMNS_PER_ADC = 8
CLOCKS_PER_CYCLE = 26  # of a PE-cycle

# pJ for each use
TILE_BUFFER_PJ, TEMP_BUFFER_PJ, SUBTRACTOR_PJ, FETCH_PJ = 397.0, 0.2, 1.15e-6, 4.64
ADC_PJ, MUX_PJ, H_TREE_PJ, NEURON_PJ = 2.03084, 0.094245, 19.64 * 8, 1.274 * 4
RRAM_PJ = 1.76423
PASTED_SRAM_PJ = 671.089  # the tool's energy of an SRAM crossbar, which is the number of its area

# um^2
ADC_UM2, MUX_UM2, SUBTRACTOR_UM2, TEMP_BUFFER_UM2, H_TREE_UM2 = 693.633, 45.9, 13411.41498, 484.643999, 433660.0
BIT_UM2 = 0.7391  # of on-chip memory
TILE_BUFFER_BITS, ACTIVATION_BITS = 64 * 128, 22  # 22 bits for a membrane, and for an input
DEVICES = {"rram": 26.2144, "sram": 671.089}  # um^2 of a crossbar of 64 x 64; RRAM: 4 F^2 a cell, F = 40 nm

PARTS = ("crossbar", "converter", "lif", "interconnect", "buffer")


@dataclass(frozen=True)
class Crossbars:
    """size: rows and columns of a crossbar.  device: of DEVICES.  crossbar_pj: of one use of a crossbar."""

    size: int = 64
    device: str = "rram"
    pes_per_tile: int = 8
    clock_mhz: float = 250.0
    crossbar_pj: float = RRAM_PJ

    def __post_init__(self):
        for name in ("size", "pes_per_tile"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MemextError(f"spikesim: {'xbar_size' if name == 'size' else name} is {value!r}; allowed: whole "
                                  "numbers from 1 on")
        if self.size % COLUMNS_PER_ADC:
            raise MemextError(f"spikesim: xbar_size is {self.size}; allowed: multiples of {COLUMNS_PER_ADC}, the "
                              "columns that a converter reads")
        for name in ("clock_mhz", "crossbar_pj"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise MemextError(f"spikesim: {name} is {value!r}; allowed: positive numbers")

    @property
    def cycle_ns(self) -> float:
        return CLOCKS_PER_CYCLE * 1e3 / self.clock_mhz

    @property
    def converters(self) -> float:
        return self.size / COLUMNS_PER_ADC


def cycle_parts_pj(kernel_places: int, hardware: Crossbars) -> dict[str, float]:
    """Energy of one PE for one output position.  kernel_places: crossbars of the PE.  Of PARTS; subtractors, a
    millionth of the rest, go with the converters."""
    n = hardware.converters
    return {"crossbar": n * kernel_places * hardware.crossbar_pj,
            "converter": n * n * (ADC_PJ + MUX_PJ) + n * 16 * SUBTRACTOR_PJ,
            "lif": NEURON_PJ, "interconnect": H_TREE_PJ, "buffer": TILE_BUFFER_PJ + FETCH_PJ + n * TEMP_BUFFER_PJ}


def pe_area_um2(kernel_places: int, hardware: Crossbars, fixed_area: bool) -> float:
    """fixed_area: a crossbar takes what one of 64 x 64 does, whatever its size."""
    crossbar = DEVICES[hardware.device] * (1 if fixed_area else (hardware.size / 64) ** 2)
    return kernel_places * crossbar + hardware.converters * (ADC_UM2 + MUX_UM2)


def tile_area_um2(kernel_places: int, hardware: Crossbars, fixed_area: bool) -> float:
    """A tile with all of its PEs, used or not."""
    own = (hardware.converters * SUBTRACTOR_UM2 + TEMP_BUFFER_UM2 + memory_um2(TILE_BUFFER_BITS, 1) + H_TREE_UM2)
    return own + hardware.pes_per_tile * pe_area_um2(kernel_places, hardware, fixed_area)


def memory_um2(values: int, bits: int = ACTIVATION_BITS) -> float:
    return values * bits * BIT_UM2
