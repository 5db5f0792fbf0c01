"""backends/tensor.py on the CPU: kernels/tensor_cpu.cpp through ctypes, in the library that native.py loads.

Tensors are dense and their dtypes are checked by the caller. A library without these functions (a test build of the
neuron kernels alone) counts as none.
"""
from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int, c_longlong, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from . import native
from ._call import TYPES
from ._tensor_torch import Levels

KINDS = {"bits": 0, "nibble": 1, "int8": 2}


class Pool(ctypes.Structure):
    """kernels/tensor.h."""

    _fields_ = [("batch", c_longlong), ("channels", c_longlong), *((name, c_longlong * 2) for name in (
        "in_size", "out_size", "kernel", "stride", "padding")), ("in_stride", c_longlong * 4),
        ("out_stride", c_longlong * 4)]


_SIGNATURES = {
    "memext_levels": (c_int, c_void_p, c_int, c_longlong, POINTER(c_double)),
    "memext_pack": (c_longlong, c_void_p, c_int, c_longlong, c_int, c_double, c_void_p, c_int),
    "memext_unpack": (None, c_void_p, c_int, c_double, c_longlong, c_void_p, c_int, c_int),
    "memext_fused": (None, c_void_p, c_void_p, c_void_p, c_int, c_longlong, c_void_p),
    "memext_normalise": (None, c_void_p, c_int, c_longlong, c_longlong, c_longlong, c_void_p, c_void_p, c_void_p,
                         c_int),
    "memext_norm_backward": (None, c_void_p, c_void_p, c_int, c_longlong, c_longlong, c_longlong, c_void_p, c_void_p,
                             c_void_p, c_void_p, c_int, c_int, c_void_p, c_int),
    "memext_max_pool": (None, c_void_p, c_int, c_longlong, c_longlong, c_longlong, c_int, c_void_p, c_int),
    "memext_max_pool_from": (None, c_void_p, c_int, c_longlong, c_longlong, c_longlong, c_int, c_void_p, c_void_p,
                             c_int),
    "memext_max_pool_backward": (None, POINTER(Pool), c_void_p, c_void_p, c_int, c_void_p, c_int),
}


@lru_cache(maxsize=4)
def _prepared(library: ctypes.CDLL | None) -> ctypes.CDLL | None:
    if library is None or not all(hasattr(library, name) for name in _SIGNATURES):
        return None
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def library() -> ctypes.CDLL | None:
    return _prepared(native._library()[0])


# ---- packing ----

BLOCK = 4096  # kPackBlock


def levels(flat: Tensor, count: int) -> Levels | None:
    """Of the first `count` values."""
    found = (c_double * 4)()
    if library().memext_levels(flat.data_ptr(), TYPES[flat.dtype], min(flat.numel(), count), found):
        return None
    low, high, only, grid = found
    return Levels(low, high, None if only == -1 else only, grid or None)


def pack(flat: Tensor, kind: str, scale: float, out: Tensor) -> int:
    """-1, or where a BLOCK of values begins that holds one that does not fit."""
    return library().memext_pack(flat.data_ptr(), TYPES[flat.dtype], flat.numel(), KINDS[kind], scale, out.data_ptr(),
                                 native._threads(flat.numel()))


def unpack(data: Tensor, kind: str, scale: float, out: Tensor) -> None:
    native._fresh(out)
    library().memext_unpack(data.data_ptr(), KINDS[kind], scale, out.numel(), out.data_ptr(), TYPES[out.dtype],
                            native._threads(out.numel()))


# ---- batch norm: y is [outer, channels, inner] in memory ----

def in_memory(y: Tensor) -> tuple[int, int, int]:
    channels = y.shape[1]
    inner = y.stride(1) if channels > 1 else y.numel()
    return y.numel() // max(channels * inner, 1), channels, inner


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Contiguous float32 or float64 tensors of one size."""
    out = torch.empty_like(a)
    library().memext_fused(a.data_ptr(), b.data_ptr(), c.data_ptr(), TYPES[a.dtype], a.numel(), out.data_ptr())
    return out


def normalise(y: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    if out is not y:
        native._fresh(out)
    library().memext_normalise(y.data_ptr(), TYPES[y.dtype], *in_memory(y), scale.data_ptr(), shift.data_ptr(),
                               out.data_ptr(), native._threads(y.numel()))
    return out


def norm_backward(grad: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sums: Tensor,
                  training: bool, known: bool, out: Tensor) -> None:
    """mean, invstd, weight [C], sums [2, C]: contiguous float64; sums of g and of g * (y - mean)."""
    library().memext_norm_backward(
        grad.data_ptr(), y.data_ptr(), TYPES[y.dtype], *in_memory(y), mean.data_ptr(), invstd.data_ptr(),
        None if weight is None else weight.data_ptr(), sums.data_ptr(), training, known, out.data_ptr(),
        native._threads(y.numel()))


# ---- pooling ----

WIDEST = 2048  # kMaxPoolRow


def max_pool(x: Tensor, window: int) -> Tensor:
    """x [N, C, H, W], contiguous, float32 or float64, W <= WIDEST. window 2: stride 2; 3: stride 2, padding 1."""
    n, c, h, w = x.shape
    half = (lambda s: s // 2) if window == 2 else (lambda s: (s + 1) // 2)
    out = native._fresh(x.new_empty(n, c, half(h), half(w)))
    library().memext_max_pool(x.data_ptr(), TYPES[x.dtype], n * c, h, w, window, out.data_ptr(),
                              native._threads(x.numel()))
    return out


def max_pool_from(x: Tensor, window: int, grad: Tensor) -> Tensor:
    """The gradient of x, of max_pool's output's."""
    n, c, h, w = x.shape
    out = native._fresh(torch.empty_like(x))
    library().memext_max_pool_from(x.data_ptr(), TYPES[x.dtype], n * c, h, w, window, grad.data_ptr(), out.data_ptr(),
                                   native._threads(x.numel()))
    return out


def max_pool_backward(geometry: Pool, bits: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    native._fresh(out)
    library().memext_max_pool_backward(ctypes.byref(geometry), bits.data_ptr(), grad.data_ptr(), TYPES[grad.dtype],
                                       out.data_ptr(), native._threads(out.numel()))
    return out
