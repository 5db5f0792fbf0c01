"""SATA's parts: logic in 28 nm, memories as CACTI 7 gives them, and the array they make.

Constants are those of the published inference tool (2023). Power in mW (dynamic = internal and switching), leakage in
uW in the tables of units, area in um^2, energy in nJ per access.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import MemextError

__all__ = ["GROUPS", "Array", "Group", "Memory", "array_area", "groups_of", "register_leakage_mw"]

# width in bits: (area um^2, dynamic mW, leakage uW)
REGISTER = {2: (9.24, .00319, .00542), 4: (17.47, .00637, .0102), 8: (34.27, .01249, .0201), 16: (68.04, .02511, .0402),
            32: (135.07, .04975, .0802)}
ADDER = {2: (4.704, .00247, .00307), 4: (13.776, .00873, .0086), 8: (22.176, .01689, .017), 16: (45.024, .0367, .035),
         32: (90.72, .0758, .0708)}
SUBTRACTOR = ADDER
COMPARATOR = {2: (2.856, .001323, .00156), 4: (7.056, .00364, .00398), 8: (15.456, .00908, .00876),
              16: (32.424, .01955, .0182), 32: (66.36, .0425, .0371)}
AND = {2: (1.68, .000597, .0012), 4: (3.36, .001181, .00241), 8: (6.72, .00235, .00481), 16: (13.44, .00474, .00962),
       32: (26.88, .00949, .0192)}

# group: (unit, bits, how many, gated)
GROUPS = {
    "lif": ((COMPARATOR, 16, 1, False), (SUBTRACTOR, 16, 1, False), (REGISTER, 4, 1, True), (REGISTER, 8, 1, True)),
    "spike_mac": ((AND, 8, 1, False), (ADDER, 8, 1, False), (REGISTER, 16, 1, True)),
    "spad": ((REGISTER, 8, 9, False), (REGISTER, 8, 8, False), (REGISTER, 8, 9, True)),  # bytes: spikes, sums, weights
}


@dataclass(frozen=True)
class Group:
    """One processing element's part.  gated_mw: of units that only work when used; ungated_mw: of those that always do.
    """

    area_um2: float
    gated_mw: float
    ungated_mw: float
    leakage_mw: float


def groups_of(rounded: bool) -> dict[str, Group]:
    """lif, spike_mac and spad of one PE.  rounded: to 6 decimals (area in mm^2), as the published tool does."""
    found = {}
    for name, units in GROUPS.items():
        area = sum(n * unit[bits][0] for unit, bits, n, _ in units)
        gated = sum(n * unit[bits][1] for unit, bits, n, on in units if on)
        ungated = sum(n * unit[bits][1] for unit, bits, n, on in units if not on)
        leakage = sum(n * unit[bits][2] for unit, bits, n, _ in units) * 1e-3
        if rounded:
            area, gated, ungated, leakage = round(area * 1e-6, 6) * 1e6, *(round(x, 6)
                                                                           for x in (gated, ungated, leakage))
        found[name] = Group(area, gated, ungated, leakage)
    return found


@dataclass(frozen=True)
class Memory:
    """Energy per access of a whole block, in nJ; leakage of one bank, in mW; block_bits: what an access delivers.

    size_bits: the capacity; where it is given, the corrected form takes leakage from it (register_leakage_mw) and not
    from leakage_mw.
    """

    read_nj: float
    write_nj: float
    leakage_mw: float
    banks: int
    block_bits: int
    size_bits: int = 0


@dataclass(frozen=True)
class Array:
    """The accelerator.  rows x columns processing elements, clock in MHz, three on-chip buffers, DRAM.

    buffer_elements: distinct input elements that the input buffer holds (32 KB, less what the tool sets apart).
    membrane_bits: of one membrane, where it leaves the array between time steps.  psum_bits: of a partial sum.
    """

    rows: int = 16
    columns: int = 8
    clock_mhz: float = 400.0
    weights: Memory = Memory(0.0286315, 0.0282197, 24.9086, 2, 256, 8 * 147456)  # 144 KB
    ifmap: Memory = Memory(0.0110295, 0.012772, 6.25862, 2, 256, 8 * 32768)
    ofmap: Memory = Memory(0.0110295, 0.012772, 6.25862, 2, 256, 8 * 32768)
    dram: Memory = Memory(0.468762, 0.468771, 0.0, 16, 1024)  # 512 MiB, 32 nm; its leakage is not counted
    buffer_elements: int = 16350
    weight_buffer_bytes: int = 147456
    weight_bits: int = 8
    membrane_bits: int = 8
    psum_bits: int = 16

    def __post_init__(self):
        for name in ("rows", "columns", "clock_mhz", "buffer_elements", "weight_buffer_bytes", "weight_bits",
                     "membrane_bits", "psum_bits"):
            value = getattr(self, name)
            whole = name == "clock_mhz" or isinstance(value, int)
            if isinstance(value, bool) or not isinstance(value, int | float) or not whole or value <= 0:
                raise MemextError(f"Array: {name} is {value!r}; allowed: a positive "
                                  f"{'number' if name == 'clock_mhz' else 'whole number'}")

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def cycle_ns(self) -> float:
        return 1e3 / self.clock_mhz


def register_leakage_mw(bits: int) -> float:
    """Of so many bits, if each leaks like one of an 8-bit register of the logic: 2.5 nW."""
    return bits / 8 * REGISTER[8][2] * 1e-3


def array_area(array: Array, lif_units: int) -> dict[str, float]:
    """Area in um^2 of the array's parts: spike_mac and spad in every PE, and so many LIF units."""
    groups = groups_of(rounded=False)
    counts = {"lif": lif_units, "spike_mac": array.elements, "spad": array.elements}
    return {name: counts[name] * group.area_um2 for name, group in groups.items()}
