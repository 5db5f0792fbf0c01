"""Torch's layers on crossbars: one subclass per class of torch.nn, entered by class change.

Each overrides only the method that calls Torch's operator, so a user's or a framework's subclass that ends in
`super().forward` (SpikingJelly's layer.Conv2d) arrives here too, in whatever step mode, container or reshaping.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...chain.modules import ChainConv1d, ChainConv2d, ChainLinear
from ...errors import MemextError
from . import _reads
from ._program import Program, written

__all__ = ["LAYERS", "STATE", "Placed"]

STATE = "_memext_on_crossbar"  # attribute of a layer: its Placed
CHUNK = 2 ** 22  # currents at a time


class Placed:
    """One layer on crossbars: settings, name (which its random numbers follow from), number of calls, written weights.

    A copy and a pickle leave the written weights out: they are written again, with the same deviations.
    """

    def __init__(self, crossbar, name: str):
        self.crossbar, self.name = crossbar, name
        self.reads = self.digital = 0
        self.program: Program | None = None

    def __getstate__(self):
        return {**vars(self), "program": None}

    def generator(self, what: str, device: torch.device | str) -> torch.Generator:
        key = f"{self.crossbar.seed}/{self.name}/{what}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
        return torch.Generator(device).manual_seed(seed)

    def programmed(self, weight: Tensor, groups: int, dtype: torch.dtype) -> Program:
        """The layer's weights as written; anew if they are others than last time. The deviations stay."""
        last = self.program
        if (last is None or last.merged.dtype != dtype or last.source.device != weight.device
                or not torch.equal(last.source, weight)):
            try:
                self.program = written(weight, self.crossbar, groups, self.generator("variation", "cpu"), dtype)
            except MemextError as problem:
                raise MemextError(f"Crossbar: {self.name!r}: {problem}") from problem
        return self.program


class _OnCrossbar:
    """What the layers below have in common. They add _plain(x, weight), their own operator without bias;
    _rows(x, wide), in parts, what each read puts on the rows, [inputs, reads]; _shaped(totals, x), the results
    of all parts in the shape of the output; _AFTER, the number of dimensions behind that of the channels.
    """

    @torch.no_grad()
    def _on_crossbar(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        placed: Placed = self.__dict__[STATE]
        crossbar, device = placed.crossbar, x.device
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # half would add its own errors
        autocast = torch.is_autocast_enabled(device.type) and x.dtype != torch.float64
        result = torch.get_autocast_dtype(device.type) if autocast else x.dtype
        program = placed.programmed(weight, groups, dtype)
        x = x.to(dtype)
        binary = bool((x * x == x).all())
        with torch.autocast(device.type, enabled=False):
            if binary or crossbar.inputs == "analog":
                placed.reads += 1
                total = self._read(x, program, crossbar, placed.generator(f"read {placed.reads}", device), binary)
            elif crossbar.inputs == "digital":
                placed.digital += 1
                total = self._plain(x, program.q)
            else:
                raise MemextError(f"Crossbar: {placed.name!r} was given other values than 0 and 1, and inputs is "
                                  "'refuse'; use inputs='digital' or 'analog', or name the layer in skip")
            along = (-1, *(1,) * self._AFTER)
            total = total * program.scale.view(along)
            if bias is not None:
                total = total + bias.to(dtype).view(along)
        return total.to(result)

    def _read(self, x: Tensor, program: Program, crossbar, generator: torch.Generator, binary: bool) -> Tensor:
        if crossbar.adc_bits is not None and x.numel():
            totals = [_reads.read(program, rows, crossbar, generator, binary)
                      for rows in self._rows(x, program.currents_per_read)]
            return self._shaped(totals, x)
        total = self._plain(x, program.merged)
        if program.noise is not None:
            total = _reads.noisy(total, self._plain(x if binary else x * x, program.noise), generator)
        return total


class _Conv(_OnCrossbar):
    def _conv_forward(self, input, weight, bias):
        return self._on_crossbar(input, weight, bias, self.groups)

    def _plain(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._TORCH._conv_forward(self, x, weight, None)

    def _rows(self, x: Tensor, wide: int) -> Iterator[Tensor]:
        reads = math.prod(self._sizes(x))
        for part in self._padded(x).split(max(1, CHUNK // (wide * reads))):
            found = F.unfold(part, self._two(self.kernel_size), self._two(self.dilation), 0, self._two(self.stride))
            yield found.transpose(0, 1).flatten(1)

    def _shaped(self, totals: list[Tensor], x: Tensor) -> Tensor:
        total = torch.cat(totals, 1).unflatten(1, (-1, *self._sizes(x))).transpose(0, 1)
        return total if x.dim() == self._AFTER + 2 else total[0]

    def _padded(self, x: Tensor) -> Tensor:
        """[N, C, H, W], with the padding that the layer adds; 1-D as an image of height 1."""
        if x.dim() == self._AFTER + 1:
            x = x.unsqueeze(0)
        x = F.pad(x, self._reversed_padding_repeated_twice,
                  mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        return x if self._AFTER == 2 else x.unsqueeze(2)

    def _sizes(self, x: Tensor) -> list[int]:
        """Height and width, or length, of the output."""
        both = self._reversed_padding_repeated_twice  # last dimension first, before and after
        added = [both[2 * i] + both[2 * i + 1] for i in reversed(range(self._AFTER))]
        return [(n + p - d * (k - 1) - 1) // s + 1 for n, p, k, d, s in zip(
            x.shape[-self._AFTER:], added, self.kernel_size, self.dilation, self.stride)]

    def _two(self, value: tuple[int, ...]) -> tuple[int, int]:
        return (1,) * (2 - len(value)) + tuple(value)


class _Linear(_OnCrossbar):
    _AFTER = 0

    def forward(self, input):
        return self._on_crossbar(input, self.weight, self.bias)

    def _plain(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def _rows(self, x: Tensor, wide: int) -> Iterator[Tensor]:
        return (part.t() for part in x.reshape(-1, x.shape[-1]).split(max(1, CHUNK // wide)))

    def _shaped(self, totals: list[Tensor], x: Tensor) -> Tensor:
        return torch.cat(totals, 1).t().reshape(*x.shape[:-1], -1)


class CrossbarConv1d(_Conv, nn.Conv1d):
    """torch.nn.Conv1d on crossbars. See shared_core.hardware.crossbar.Crossbar."""

    _AFTER, _TORCH = 1, nn.Conv1d


class CrossbarConv2d(_Conv, nn.Conv2d):
    """torch.nn.Conv2d on crossbars. See shared_core.hardware.crossbar.Crossbar."""

    _AFTER, _TORCH = 2, nn.Conv2d


class CrossbarLinear(_Linear, nn.Linear):
    """torch.nn.Linear on crossbars. See shared_core.hardware.crossbar.Crossbar."""


# Layers that retrofit(net, "compress") or "recompute" changed: ours comes before theirs, which runs Torch's operator.

class CrossbarChainConv1d(_Conv, ChainConv1d):
    """A ChainConv1d on crossbars."""

    _AFTER, _TORCH = 1, nn.Conv1d


class CrossbarChainConv2d(_Conv, ChainConv2d):
    """A ChainConv2d on crossbars."""

    _AFTER, _TORCH = 2, nn.Conv2d


class CrossbarChainLinear(_Linear, ChainLinear):
    """A ChainLinear on crossbars."""


# What a layer becomes, by the nearest class that it is or is derived from.
LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    ChainConv1d: CrossbarChainConv1d, ChainConv2d: CrossbarChainConv2d, ChainLinear: CrossbarChainLinear,
    nn.Conv1d: CrossbarConv1d, nn.Conv2d: CrossbarConv2d, nn.Linear: CrossbarLinear}
