"""backends/tensor.py on the GPU: kernels/tensor.cu, one module per stored type, compiled by NVRTC and launched by CuPy
on Torch's current stream. The functions are those of _tensor_native.py, argument by argument.
"""
from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._build import KERNELS
from . import _nvrtc, cuda
from ._call import compute_dtype
from ._tensor_native import KINDS, Pool, in_memory

THREADS = 256
MAX_BLOCKS = 1 << 16  # the kernels go on from there by themselves
STORED = {torch.float32: "float", torch.float64: "double", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
NAMES = ("memext_pack", "memext_unpack", "memext_fused", "memext_normalise", "memext_norm_sums", "memext_norm_apply",
         "memext_unpool")
_POOL = np.dtype((np.void, ctypes.sizeof(Pool)))
_functions: dict[tuple[int, torch.dtype, str], object] = {}


def unavailable() -> str | None:
    return cuda.unavailable()


def compile(dtype: torch.dtype, capability: int) -> _nvrtc.Compiled:
    """All kernels for one stored type; no GPU needed."""
    source = (KERNELS / "tensor.cu").read_text()
    return _nvrtc.compile(source, (f"-DMEMEXT_STORED={STORED[dtype]}",), capability, "tensor.cu")


@lru_cache(maxsize=1)
def _sources_hash() -> str:
    return cuda.hash_of(*(KERNELS / name for name in ("call.h", "config.h", "half.h", "tensor.h", "tensor.cu")))


def _image(dtype: torch.dtype, capability: int) -> Path:
    name = f"memext_tensor_{STORED[dtype].lower()}"
    return cuda.kept_image(name, (_sources_hash(),), capability, lambda: compile(dtype, capability))


def _load(index: int, dtype: torch.dtype) -> None:
    major, minor = torch.cuda.get_device_capability(index)
    module = cuda._cupy()[0].RawModule(path=str(_image(dtype, 10 * major + minor)))
    for name in NAMES:
        function = _functions[index, dtype, name] = module.get_function(name)
        function.kernel  # noqa: B018  loaded now, not at its first launch


def _launch(name: str, like: Tensor, items: int, *arguments) -> None:
    """items: what the kernel's threads share. Tensors are passed as pointers."""
    if items == 0:
        return
    device = like.device
    given = tuple(np.uintp(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments)
    with torch.cuda.device(device), cuda._cupy()[0].cuda.Device(device.index):
        if (device.index, like.dtype, name) not in _functions:
            _load(device.index, like.dtype)
        blocks = min((items + THREADS - 1) // THREADS, MAX_BLOCKS)
        with cuda._stream(torch.cuda.current_stream(device).cuda_stream, device.index):
            _functions[device.index, like.dtype, name]((blocks,), (THREADS,), given)


# ---- packing ----

def pack(flat: Tensor, kind: str, scale: float, out: Tensor) -> int:
    _launch("memext_pack", flat, out.numel(), flat, np.int64(flat.numel()), np.int32(KINDS[kind]), np.float64(scale),
            out)
    return -1


def unpack(data: Tensor, kind: str, scale: float, out: Tensor) -> None:
    _launch("memext_unpack", out, out.numel(), data, np.int64(out.numel()), np.int32(KINDS[kind]), np.float64(scale),
            out)


# ---- batch norm ----

def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.empty_like(a)
    _launch("memext_fused", a, a.numel(), a, b, c, np.int64(a.numel()), out)
    return out


def normalise(y: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    _, channels, inner = map(np.int64, in_memory(y))
    _launch("memext_normalise", y, y.numel(), y, np.int64(y.numel()), channels, inner, scale, shift, out)
    return out


def norm_backward(grad: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sums: Tensor,
                  training: bool, known: bool, out: Tensor) -> None:
    outer, channels, inner = in_memory(y)
    count = outer * inner
    if not known:
        parts = max(1, min(count // 32, 2048))
        found = sums.new_empty(2, parts, channels)
        _launch("memext_norm_sums", y, parts * channels, grad, y, np.int64(outer), np.int64(channels), np.int64(inner),
                mean, np.int64(parts), found)
        torch.sum(found, 1, out=sums)
    scale = invstd if weight is None else invstd * weight
    share = 1 / count if training else 0.0
    factors = torch.stack((mean, scale, sums[0] * share, sums[1] * invstd * invstd * share)).to(compute_dtype(y.dtype))
    _launch("memext_norm_apply", y, y.numel(), grad, y, np.int64(y.numel()), np.int64(channels), np.int64(inner),
            factors, out)


# ---- pooling ----

def max_pool_backward(geometry: Pool, bits: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    _launch("memext_unpool", grad, out.numel(), np.frombuffer(geometry, dtype=_POOL), bits, grad, out)
    return out
