"""The backward pass of conv -> batch norm -> neuron over parts of the batch, so that the conv's output is never whole.

Rebuilding a whole output y needs room for it, and for what the convolution operator lays out inside. Samples meet only
in batch norm's two sums, so: first the neurons' backward, chunk by chunk, which adds up the sums; then the norm's and
the conv's, chunk by chunk. Each pass runs the conv again, which is why policy.py chooses where this is done. Chunks
hold all time steps of some samples. Few samples would change the bits of a convolution (another blocking), so a chunk
has at least SMALLEST images.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .. import coding
from ._links import Kept, Made

__all__ = ["Chunks", "chunks_of"]

SMALLEST, MOST = 32, 8


class Chunks:
    """How [T, N, ...] is cut: ranges of N. Tensors may also be seen as [T * N, ...]."""

    def __init__(self, steps: int, samples: int):
        self.steps, self.samples = steps, samples
        self.width = max(-(-SMALLEST // steps), -(-samples // MOST))

    def __iter__(self) -> Iterator[slice]:
        return (slice(n, min(n + self.width, self.samples)) for n in range(0, self.samples, self.width))

    def part(self, t: Tensor, chunk: slice) -> Tensor:
        """Of t [T * N, *]: the chunk's images, [T * n, *], copied."""
        part = t.view(self.steps, self.samples, *t.shape[1:])[:, chunk].flatten(0, 1)
        return part if self.steps > 1 else part.clone()  # of one step, it is still a view

    def put(self, t: Tensor, chunk: slice, part: Tensor) -> None:
        """The inverse of `part`."""
        whole = t.view(self.steps, self.samples, *t.shape[1:])
        whole[:, chunk].copy_(part.view(self.steps, -1, *t.shape[1:]))

    def input_part(self, saved, kept: Kept, chunk: slice) -> Tensor:
        """The chunk of a kept conv input; coded ones are decoded for these samples alone."""
        data, code = saved[kept.slot], kept.code
        if code is None:
            return self.part(data, chunk)
        shape = (chunk.stop - chunk.start, *kept.shape[1:])
        each = 8 // coding.PER_BYTE[code.kind] * _count(kept.shape[1:])
        if each % 8 or not _standard(kept):
            return self.part(coding.decode(data, code), chunk)
        out = torch.empty((self.steps, *shape), dtype=code.dtype, device=data.device)
        one = replace(code, shape=shape, stride=out.stride()[1:])
        if coding.is_fake(data):  # nothing to decode, and the planner need not see each step
            return out.flatten(0, 1)
        flat = data.view(self.steps, self.samples, each // 8 // data.element_size())
        for t in range(self.steps):
            coding.decode(flat[t, chunk].reshape(-1), one, out=out[t])
        return out.flatten(0, 1)


def chunks_of(made: Made, kept: Kept) -> Chunks | None:
    """Chunks of an output `made` [T * N, C, *] that its neuron sees as `kept` [T, N, C, *]; None: not divisible."""
    if len(made.shape) < 3 or tuple(kept.shape[2:]) != tuple(made.shape[1:]) or len(kept.shape) != len(made.shape) + 1:
        return None
    if not _standard(kept) or kept.shape[0] * kept.shape[1] != made.shape[0] or _count(made.shape[1:]) % 8:
        return None
    chunks = Chunks(kept.shape[0], kept.shape[1])
    return chunks if chunks.width < chunks.samples else None


def _standard(kept: Kept) -> bool:
    step = 1
    for n, stride in zip(reversed(kept.shape), reversed(kept.stride)):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def _count(shape) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
