"""A layer's weights, written into crossbars: what every row adds to the current of every column, once and for all.

The circuit is linear in its inputs, so wire resistance and device variation need no solving while the network runs.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .column import effective_conductance
from .encoding import encode_weights

if TYPE_CHECKING:
    from .settings import Crossbar

__all__ = ["Program", "written"]


@dataclass
class Program:
    """A layer with `groups` groups of `outputs` outputs and `inputs` inputs (of one group), in units of the number 1.

    source: the weights it was made of.  q: [out, ...] the quantised weights, scale: [out or 1] what 1 stands for.
    merged, noise: [out, ...], all columns of an output together: mean, and variance of the read noise, that a spike
        adds; for reads without an ADC.
    columns, spread: [groups * tiles, columns * outputs, rows], the same of each column, in steps of the ADC.
    order: [groups * tiles * rows], which input (of all groups; one past the last for none) is on which row.
    factors: [columns], what a step of each counts.  offset: [groups, outputs, inputs], digital, or None.
    tiles: crossbars above one another.  crossbars: how many in all.  off_share: of the cells that hold weights.
    """

    source: Tensor
    q: Tensor
    scale: Tensor
    merged: Tensor
    noise: Tensor | None
    columns: Tensor | None
    spread: Tensor | None
    order: Tensor
    factors: Tensor
    offset: Tensor | None
    groups: int
    tiles: int
    crossbars: int
    off_share: float

    @property
    def currents_per_read(self) -> int:
        """Of all columns, and voltages on their rows."""
        groups, columns, rows = self.columns.shape
        return groups * (columns + rows)


def written(weight: Tensor, crossbar: Crossbar, groups: int, generator: torch.Generator, dtype: torch.dtype) -> Program:
    """weight: [out, in / groups, *kernel].  generator: of the device variation.  dtype: of the reads."""
    held = encode_weights(weight, crossbar.bits, crossbar.encoding, scale=crossbar.scale, cell=crossbar.cell,
                          shift=crossbar.shift)
    rows = _rows(weight, crossbar).to(weight.device)  # [tiles, size], index into inputs; `inputs` for none
    tiles, size = rows.shape
    outputs, inputs = weight.shape[0] // groups, weight[0].numel()
    inverse = torch.empty(inputs + 1, dtype=torch.long, device=weight.device)
    inverse[rows.flatten()] = torch.arange(rows.numel(), device=weight.device)
    used = int((rows < inputs).any(0).nonzero().max()) + 1  # rows that never see a spike are not read
    merged, noise, columns, spread = 0.0, 0.0, [], []
    for factor, numbers in zip(held.factors, held.numbers):
        mean, variance = _columns(numbers.reshape(groups, outputs, inputs), rows, crossbar, generator)
        merged = merged + factor * mean.flatten(1, 2)[:, inverse[:-1]]  # [groups, inputs, outputs]
        if crossbar.read_noise:
            noise = noise + factor ** 2 * variance.flatten(1, 2)[:, inverse[:-1]]
        if crossbar.adc_bits is not None:
            columns.append((mean[:, :, :used] / crossbar.adc_step).to(dtype))
            spread.append((variance[:, :, :used] / crossbar.adc_step ** 2).to(dtype))
    offset = None if held.offset is None else held.offset.reshape(groups, outputs, inputs)
    if offset is not None:
        merged = merged + offset.transpose(1, 2)

    def as_weight(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(weight.shape).to(dtype)

    def side_by_side(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, 3).flatten(3).flatten(0, 1).transpose(1, 2).contiguous()

    at = rows[:, :used].flatten()
    order = torch.cat([torch.where(at < inputs, at + g * inputs, groups * inputs) for g in range(groups)])
    factors = torch.tensor(held.factors, dtype=dtype, device=weight.device) * (crossbar.adc_step or 1)
    return Program(
        weight.detach().clone(), held.q.to(dtype), held.scale.to(dtype).reshape(-1), as_weight(merged),
        as_weight(noise) if crossbar.read_noise else None, side_by_side(columns) if columns else None,
        side_by_side(spread) if columns and crossbar.read_noise else None, order, factors,
        None if offset is None else offset.to(dtype), groups, tiles,
        groups * tiles * -(-outputs * len(held.factors) // size), held.off_share)


def _rows(weight: Tensor, crossbar: Crossbar) -> Tensor:
    """[tiles, size]: the input (channel and place in the kernel, flattened as in the weight) on each row."""
    inputs, size = weight[0].numel(), crossbar.size
    index = torch.arange(inputs)
    if crossbar.rows == "kernel" and weight.dim() > 2:  # a crossbar has the channels of one place in the kernel
        places = index.view(weight.shape[1], -1).t()
        tiles = -(-places.shape[1] // size)
        index = torch.nn.functional.pad(places, (0, tiles * size - places.shape[1]), value=inputs)
        return index.reshape(-1, size)
    return torch.nn.functional.pad(index, (0, -inputs % size), value=inputs).view(-1, size)


def _columns(numbers: Tensor, rows: Tensor, crossbar: Crossbar, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a spike adds to the current of one column per output, and its variance: [groups, tiles, size, outputs].

    numbers: [groups, outputs, inputs]. Rows without an input hold 0, and leak like any other.
    """
    cell = crossbar.cell
    there = torch.nn.functional.pad(numbers, (0, 1))[:, :, rows]                    # [groups, outputs, tiles, size]
    g = cell.conductance(there.permute(3, 0, 2, 1).contiguous())                    # [size, groups, tiles, outputs]
    if crossbar.variation:
        drawn = torch.randn(g.shape, dtype=g.dtype, device=generator.device, generator=generator).to(g.device)
        g = (g * (1 + crossbar.variation * drawn)).clamp_(min=0)
    seen = effective_conductance(g, crossbar.wire_ohm)
    spread = (seen * (crossbar.read_noise / cell.unit)) ** 2
    if crossbar.reference:  # a column of cells in the lowest state, of the same wire, is taken away before the ADC
        off = cell.conductance(torch.zeros(len(g), dtype=torch.long, device=g.device))
        seen = seen - effective_conductance(off, crossbar.wire_ohm).view(-1, 1, 1, 1)
    return tuple(part.permute(1, 2, 0, 3) for part in (seen / cell.unit, spread))
