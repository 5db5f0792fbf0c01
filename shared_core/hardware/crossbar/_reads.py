"""Reading crossbars: spikes on the rows, noise on the currents, an analog-to-digital converter (ADC), shift and add."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._program import Program

if TYPE_CHECKING:
    from .settings import Crossbar

__all__ = ["convert", "noisy", "read"]


def noisy(mean: Tensor, variance: Tensor, generator: torch.Generator) -> Tensor:
    """mean + sqrt(variance) * N(0, 1), in place of both."""
    drawn = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return mean.addcmul_(variance.clamp_(min=0).sqrt_(), drawn)  # a convolution of zeros may come out as -1e-9


def convert(current: Tensor, bits: int, signed: bool) -> Tensor:
    """What the ADC makes of currents (in units of its step), in place: rounded to steps, clipped to its range.

    The range is 0 to adc_max; for inputs below 0 (`signed`) -adc_max to adc_max, with one bit more.
    """
    highest = 2 ** bits - 1
    return current.round_().clamp_(-highest if signed else 0, highest)


def read(program: Program, x: Tensor, crossbar: Crossbar, generator: torch.Generator, binary: bool) -> Tensor:
    """Sums of weights, in units of scale: [out, reads].

    x: [groups * inputs, reads]: what each read puts on the rows.  binary: x is 0 and 1 only.
    """
    reads = x.shape[1]
    on_rows = torch.cat([x, x.new_zeros(1, reads)])[program.order].view(len(program.columns), -1, reads)
    current = torch.bmm(program.columns, on_rows)                          # [groups * tiles, columns * outputs, reads]
    if program.spread is not None:
        current = noisy(current, torch.bmm(program.spread, on_rows if binary else on_rows ** 2), generator)
    digital = convert(current, crossbar.adc_bits, signed=not binary and bool((x < 0).any()))
    digital = digital.view(program.groups, program.tiles, len(program.factors), -1, reads).sum(1)
    total = (digital * program.factors.view(-1, 1, 1)).sum(1)              # [groups, outputs, reads]
    if program.offset is not None:
        total += torch.bmm(program.offset, x.reshape(program.groups, -1, reads))
    return total.flatten(0, 1)
