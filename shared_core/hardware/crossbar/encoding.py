"""Signed weights as whole numbers from 0 on, which is what cells can hold; and the one that needs few strong cells.

    q = round(w / scale), from -(2^(bits-1) - 1) to 2^(bits-1) - 1

"twos-complement": a negative q is stored as q + 2^bits. -1 is then 15 in 4 bits: every cell of a small negative weight
    is in its low-resistance state, where noise and IR drop are largest.
"shifted": a negative q is stored as q + 2^p with the smallest p that makes all of them 0 or more, p = ceil(log2(-min
    q)): the non-ideality-aware encoding of SpikeSim. Fewer cells are on, and the highest bit is not needed.
"signed-top": two's complement whose highest bit counts -2^(bits-1), with cells of one bit. Nothing is subtracted.
"pair": |q| in one of two columns, whose currents are subtracted; the conventional way, with twice the columns.

Where 2^bits or 2^p was added, as much is subtracted digitally for every spike that met a negative weight (the DIFF
module of SpikeSim): `offset`.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import MemextError
from .cells import Cell

__all__ = ["ENCODINGS", "SCALES", "Encoded", "encode_weights", "quantise"]

ENCODINGS = ("twos-complement", "shifted", "signed-top", "pair")
SCALES = ("layer", "channel", "fixed")


@dataclass(frozen=True)
class Encoded:
    """A layer's weights in cells: q = sum_s factors[s] * numbers[s] + offset, exactly.

    numbers: [S, *weight.shape], int64, one entry for each cell; S columns side by side make an output.
    factors: [S], what the current of each column counts.  offset: [*weight.shape] int64, or None: what a spike adds
    digitally.  q: int64.  scale: the weight that 1 stands for; [out, 1, ...] for scale="channel".
    shift: p of "shifted".  off_share: share of cells in the state of highest resistance, among those that a
    weight of so many bits takes: a column that the encoding does not need counts as off.
    """

    numbers: Tensor
    factors: tuple[int, ...]
    offset: Tensor | None
    q: Tensor
    scale: Tensor
    shift: int | None
    off_share: float


def quantise(weight: Tensor, bits: int, scale: str = "layer") -> tuple[Tensor, Tensor]:
    """(q int64, scale float64) with weight ~ q * scale.

    scale: "layer", the largest |weight| becomes 2^(bits-1) - 1; "channel", for each output by itself; "fixed",
    scale = 2^-(bits-1) as in NICE, which holds weights from -1 to 1 (1 becomes 2^(bits-1)).
    Raises MemextError: bits outside 2 to 8, an unknown scale, weights that are not finite or, for "fixed", beyond 1.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise MemextError(f"bits is {bits!r}; allowed: whole numbers from 2 to 8")
    if scale not in SCALES:
        raise MemextError(f"scale is {scale!r}; allowed: {', '.join(map(repr, SCALES))}")
    w = weight.detach().double()
    if not bool(torch.isfinite(w).all()):
        raise MemextError("a weight is infinite or not a number; only finite weights can be stored")
    if scale == "fixed":
        step = torch.tensor(2.0 ** (1 - bits), dtype=torch.float64, device=w.device)
        if w.numel() and w.abs().max() > 1:
            raise MemextError(f"scale='fixed' holds weights from -1 to 1, and the largest here is "
                              f"{w.abs().max().item():.4g}; use scale='layer' or 'channel'")
        return torch.round(w / step).long(), step
    size = w.abs().amax(tuple(range(1, w.dim())), keepdim=True) if scale == "channel" else w.abs().max()
    step = torch.where(size > 0, size, 1) / (2 ** (bits - 1) - 1)
    return torch.round(w / step).long(), step


def encode_weights(weight: Tensor, bits: int = 4, encoding: str = "shifted", *, scale: str = "layer",
                   cell: Cell | None = None, shift: int | None = None) -> Encoded:
    """A layer's weights as numbers for cells.

    weight: [out, ...].  bits: of a weight, sign included.  encoding: see this module.  scale: see quantise.
    cell: of which kind; a weight of more bits than a cell holds is sliced into several, low bits first.
    shift: p for "shifted", instead of the smallest.
    Raises MemextError: an unknown encoding, a shift that is too small, "signed-top" with cells of several bits, and
        what quantise refuses.
    """
    cell = Cell() if cell is None else cell
    if encoding not in ENCODINGS:
        raise MemextError(f"encoding is {encoding!r}; allowed: {', '.join(map(repr, ENCODINGS))}")
    q, step = quantise(weight, bits, scale)
    negative = q < 0
    used = None
    if encoding == "pair":
        above, below = _sliced(q.clamp(min=0), cell), _sliced(-q.clamp(max=0), cell)
        numbers, factors, offset = [*above[0], *below[0]], [*above[1], *(-f for f in below[1])], None
    elif encoding == "signed-top":
        if cell.bits != 1:
            raise MemextError(f"encoding='signed-top' needs cells of one bit, and these hold {cell.bits}; use "
                              "'shifted'")
        if q.numel() and q.max() >= 2 ** (bits - 1):
            raise MemextError(f"encoding='signed-top' holds numbers up to {2 ** (bits - 1) - 1} in {bits} bits, and "
                              f"the largest is {int(q.max())} (scale='fixed'); use 'shifted'")
        numbers, factors = _sliced(torch.where(negative, q + 2 ** bits, q), cell, bits)
        factors, offset = [*factors[:-1], -factors[-1]], None
    else:
        used = bits if encoding == "twos-complement" else _shift(q, shift)
        numbers, factors = _sliced(torch.where(negative, q + 2 ** used, q), cell)
        offset = -(2 ** used) * negative.long()
        used = used if encoding == "shifted" else None
    stacked, whole = torch.stack(numbers), max(len(numbers), -(-bits // cell.bits))
    return Encoded(stacked, tuple(factors), offset, q, step, used,
                   1 - (1 - cell.off_share(stacked)) * len(numbers) / whole)


def _shift(q: Tensor, wanted: int | None) -> int:
    lowest = -int(q.min()) if q.numel() else 0
    least = math.ceil(math.log2(lowest)) if lowest > 1 else 0
    if wanted is None:
        return least
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not least <= wanted <= 8:
        raise MemextError(f"shift is {wanted!r}; the lowest weight is {-lowest}, so allowed are whole numbers from "
                          f"{least} to 8, or None for the smallest")
    return wanted


def _sliced(stored: Tensor, cell: Cell, bits: int = 1) -> tuple[list[Tensor], list[int]]:
    """Numbers for cells, low bits first, and what each counts; as many as the largest number needs, at least `bits`."""
    bits = max(bits, int(stored.max()).bit_length() if stored.numel() else 1)
    starts = range(0, bits, cell.bits)
    return [stored >> start & cell.highest for start in starts], [2 ** start for start in starts]
