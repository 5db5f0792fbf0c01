"""How many input elements SATA fetches from DRAM for one pass over a layer: misses of a buffer that forgets at once.

The buffer takes up to `capacity` distinct elements; when the last of them arrives all are forgotten. The stream is that
of the output-stationary array: for each tile of filters, for each tile of pixels, for each cycle r, row c of the array
asks for element r - c of its pixel's window. What lies outside the map (padding) is not fetched.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ["Window", "fetched", "touched"]


class Window(NamedTuple):
    """What a layer's inputs look like: pairs are (vertical, horizontal); channels: of one group."""

    size: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channels: int
    groups: int

    @property
    def elements(self) -> int:
        return self.size[0] * self.size[1] * self.channels * self.groups


def _places(w: Window, dim: int) -> np.ndarray:
    """[output, kernel] index into the map, -1 where there is none."""
    at = (np.arange(w.output[dim])[:, None] * w.stride[dim] + np.arange(w.kernel[dim])[None] * w.dilation[dim]
          - w.padding[dim])
    return np.where((at >= 0) & (at < w.size[dim]), at, -1)


def touched(w: Window) -> int:
    """Distinct elements of all groups that any output needs."""
    used = [len(np.unique(at[at >= 0])) for at in (_places(w, 0), _places(w, 1))]
    return used[0] * used[1] * w.channels * w.groups


@lru_cache(maxsize=256)
def fetched(w: Window, filter_tiles: int, rows: int, capacity: int) -> int:
    """Elements fetched for all filters of all groups.  filter_tiles: of one group.  rows: of the array."""
    if w.elements < capacity:
        return touched(w)
    buffer, stream = _Buffer(w.elements, capacity), _Stream(w, rows)
    for group in range(w.groups):
        _passes(buffer, stream, group * w.channels, filter_tiles)
    return buffer.misses


def _passes(buffer: _Buffer, stream: _Stream, offset: int, times: int) -> None:
    """The whole stream, so many times. A pass depends only on where the one before it emptied the buffer last; that
    soon repeats, and is then not gone through again."""
    known: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {}
    start = None
    for done in range(times):
        if start in known:
            for _ in range(times - done):
                misses, start = known[start]
                buffer.misses += misses
            buffer.refill(stream, offset, start)
            return
        before, emptied = buffer.misses, None
        for number, tile in enumerate(stream):
            at = buffer.ask(tile + offset)
            emptied = emptied if at is None else (number, at)
        if emptied is None:
            return  # all of the stream is in the buffer now
        if start is not None:
            known[start] = buffer.misses - before, emptied
        start = emptied


class _Buffer:
    def __init__(self, elements: int, capacity: int):
        self.seen = np.zeros(elements, dtype=np.int64)  # the epoch in which an element came last
        self.capacity, self.epoch, self.held, self.misses = capacity, 1, 0, 0

    def ask(self, elements: np.ndarray) -> int | None:
        """Fetches what is not there.  Returns: how many were asked for when the buffer was last emptied, or None."""
        emptied, asked = None, elements
        while len(asked):
            new = asked[self.seen[asked] != self.epoch]
            if not len(new):
                break
            distinct, first = np.unique(new, return_index=True)
            if self.held + len(distinct) < self.capacity:
                self.seen[distinct] = self.epoch
                self.held, self.misses = self.held + len(distinct), self.misses + len(distinct)
                break
            filling = new[np.sort(first)[self.capacity - self.held - 1]]
            self.misses += self.capacity - self.held
            asked = asked[np.flatnonzero(asked == filling)[0] + 1:]
            emptied = len(elements) - len(asked)
            self.epoch, self.held = self.epoch + 1, 0
        return emptied

    def refill(self, stream: _Stream, offset: int, start: tuple[int, int]) -> None:
        """What a pass leaves that emptied the buffer last at `start`: tile, and elements of it asked for by then."""
        misses, self.epoch, self.held = self.misses, self.epoch + 1, 0
        for number, tile in enumerate(stream):
            if number >= start[0]:
                self.ask((tile + offset)[start[1] if number == start[0] else 0:])
        self.misses = misses


class _Stream:
    """For each tile of pixels, addresses (channel last, of group 0) in the order in which the array asks for them."""

    def __init__(self, w: Window, rows: int):
        down, across = _places(w, 0)[:, None, :, None], _places(w, 1)[None, :, None, :]
        place = np.where((down >= 0) & (across >= 0), down * w.size[1] + across, -1)
        self.place = place.reshape(w.output[0] * w.output[1], -1)  # [pixel, place in the kernel]
        self.channels, self.depth, self.rows = w.channels, w.channels * w.groups, rows
        window = self.place.shape[1] * w.channels
        element = np.arange(window + rows - 1)[:, None] - np.arange(rows)[None]  # [cycle, row of the array]
        cycle, self.row = np.nonzero((element >= 0) & (element < window))
        self.element = element[cycle, self.row]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.place), self.rows):
            inside = self.row < len(self.place) - start
            element = self.element[inside]
            spot = self.place[start + self.row[inside], element // self.channels]
            yield (spot * self.depth + element % self.channels)[spot >= 0]
