"""Spikes and small integers in the fewest bits that hold them, and back again bit for bit.

    kind     values                                       size of a value
    bits     0 or scale (dropout: scale = 1 / (1 - p))    1 bit, value i in bit i % 8 of byte i // 8
    nibble   scale * k, 0 <= k <= 15                      4 bits, value i in the lower half of byte i // 2 if i is even
    int8     scale * k, -128 <= k <= 127                  8 bits

Values are counted in the order in which they lie in memory, so channels_last and permuted tensors are read straight
through. Unused bits of the last byte are 0. On the CPU every value is checked while it is packed; a tensor of real
numbers is given up at its first block.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .backends import tensor as kernels
from .backends._tensor_torch import PER_BYTE
from .errors import MemextError

__all__ = ["Alphabet", "Code", "decode", "decode_step_bits", "empty", "encode", "from_step_bits",
           "is_dense", "is_fake", "same_order"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Alphabet:
    """What is known of a tensor's values before looking at them: scale * k with integers 0 <= k <= levels."""

    levels: int
    scale: float = 1.0

    @property
    def kind(self) -> str | None:
        """The smallest kind that holds them, or None."""
        return next((kind for kind, most in (("bits", 1), ("nibble", 15), ("int8", 127)) if self.levels <= most), None)


@dataclass(frozen=True)
class Code:
    """How a tensor was packed. shape, stride, dtype: of the tensor. A stride that is not dense: decoded contiguous."""

    kind: str
    scale: float
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the packed data."""
        return -(-self.numel // PER_BYTE[self.kind])

    @property
    def levels(self) -> int | None:
        """Greatest value where all are integers from 0 to it; None: unknown."""
        return {"bits": 1, "nibble": 15}.get(self.kind) if self.scale == 1 else None


def encode(t: Tensor, hint: Alphabet | None = None) -> tuple[Tensor, Code] | None:
    """Packs t. Returns (data uint8 or int8 [code.nbytes], code), or None if no kind holds every value exactly.

    t: any shape and strides, float16/32/64 or bfloat16 (None for other types). NaN, infinity and -0.0 are not held.
    hint: what the values are known to be. On the CPU they are looked at, hint or not. On other devices, where looking
    would wait for the device, and on fake tensors the hint is believed, and without one the answer is None.
    """
    if t.dtype not in DTYPES:
        return None
    flat, stride = _in_memory_order(t.detach())
    if is_fake(t) or t.device.type != "cpu":
        if hint is None or hint.kind is None:
            return None
        code = Code(hint.kind, hint.scale, tuple(t.shape), stride, t.dtype)
        return kernels.pack(flat, code.kind, code.scale), code
    found = kernels.pack_checked(flat)
    if found is None:
        return None
    data, kind, scale = found
    return data, Code(kind, scale, tuple(t.shape), stride, t.dtype)


def decode(data: Tensor, code: Code, out: Tensor | None = None) -> Tensor:
    """The tensor that was packed as `data`, equal to it in every bit, with its strides.

    out: written and returned instead of a new tensor. Raises MemextError: data or out that do not fit the code.
    """
    if data.numel() != code.nbytes or not data.is_contiguous():
        raise MemextError(f"coding.decode: data has shape {tuple(data.shape)}, strides {data.stride()}; {code} needs "
                          f"{code.nbytes} contiguous bytes; pass what encode returned beside this code")
    if out is None:
        out = empty(code, data)
    elif tuple(out.shape) != code.shape or out.dtype != code.dtype or out.device != data.device:
        raise MemextError(f"coding.decode: out is {tuple(out.shape)}, {out.dtype}, {out.device}; allowed: "
                          f"{code.shape}, {code.dtype}, {data.device}")
    elif not _same(code.shape, out.stride(), _memory_strides(code)):
        return out.copy_(decode(data, code))
    flat, _ = _in_memory_order(out)
    kernels.unpack(data.view(-1), code.kind, code.scale, flat)
    return out


def from_step_bits(bits: Tensor, like: Tensor) -> tuple[Tensor, Code]:
    """Bits as the neuron kernels write them, uint8 [T, ceil(N / 8)], as (data, code) of the spikes `like` [T, *].

    like: values 0 or 1, its steps one after the other in memory, each dense.  A view of `bits` where no step ends
    inside a byte (N % 8 == 0), else a copy.
    """
    code = Code("bits", 1.0, tuple(like.shape), _strides(like), like.dtype)
    return _without_gaps(bits, code), code


def decode_step_bits(bits: Tensor, code: Code) -> Tensor:
    """The spikes again, from the bits that were given to from_step_bits and the code that it returned."""
    return decode(_without_gaps(bits, code), code)


def _without_gaps(bits: Tensor, code: Code) -> Tensor:
    steps = code.shape[0]
    neurons = code.numel // steps if steps else 0
    if tuple(bits.shape) != (steps, -(-neurons // 8)) or bits.dtype != torch.uint8:
        raise MemextError(f"coding.from_step_bits: bits are {bits.dtype} {tuple(bits.shape)}; allowed for spikes "
                          f"{code.shape}: torch.uint8 {(steps, -(-neurons // 8))}, as Outputs.bits")
    if neurons % 8 == 0 or steps <= 1:
        return bits.reshape(-1)
    if is_fake(bits):
        return bits.new_empty(code.nbytes)
    whole = torch.empty(bits.numel() * 8, dtype=torch.bfloat16, device=bits.device)
    kernels.unpack(bits.reshape(-1), "bits", 1.0, whole)
    return kernels.pack(whole.view(steps, -1)[:, :neurons].reshape(-1), "bits", 1.0)


# ---- order in memory ----

def is_fake(t: Tensor) -> bool:
    """A tensor without memory, as the planner uses them."""
    return isinstance(t, FakeTensor)


def is_dense(t: Tensor) -> bool:
    """Do t's values fill a stretch of memory without gaps or overlap, in whatever order of its dimensions?"""
    return t.is_contiguous() or t.numel() == 0 or _dense(t.shape, t.stride())


def _dense(shape, stride) -> bool:
    step = 1
    for of, n in sorted((s, n) for s, n in zip(stride, shape) if n > 1):
        if of != step:
            return False
        step *= n
    return True


def _strides(t: Tensor) -> tuple[int, ...]:
    return t.stride() if is_dense(t) else t.contiguous().stride()


def same_order(a: Tensor, b: Tensor) -> bool:
    """Do two tensors of one shape have their values at the same places in memory?"""
    return _same(b.shape, a.stride(), b.stride())


def _same(shape, one, other) -> bool:
    return one == other or all(n <= 1 or a == b for n, a, b in zip(shape, one, other))


def _in_memory_order(t: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(values [numel] as they lie in memory, strides that put them back); of a contiguous copy if t has gaps."""
    if not is_dense(t):
        t = t.contiguous()
    return t.as_strided((t.numel(),), (1,)), t.stride()


def _memory_strides(code: Code) -> tuple[int, ...]:
    """Those of the packed order."""
    if 0 in code.shape or _dense(code.shape, code.stride):
        return code.stride
    return tuple(math.prod(code.shape[d + 1:]) for d in range(len(code.shape)))


def empty(code: Code, like: Tensor) -> Tensor:
    """An uninitialised tensor as `decode` returns it, on the device of `like`."""
    return like.new_empty_strided(code.shape, _memory_strides(code), dtype=code.dtype)
