"""The fixture `kernels`: the functions of backends/tensor.py on plain Torch, on each compiled CPU library, and on the
text of the GPU kernels compiled as C++ (kernels/tensor_shim.cpp), launched through a stand-in for CuPy.

MEMEXT_TENSOR_LIB and MEMEXT_TENSOR_SHIM name builds of tensor_cpu.cpp and tensor_shim.cpp to test instead (sanitizers).
"""
from __future__ import annotations

import ctypes
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared_core import _build
from shared_core.backends import _tensor_cuda, _tensor_native, cuda, tensor

GPU_TEXT = "gpu text"
NAMES = ("torch", "base", "avx2", "avx512", GPU_TEXT)
SHIM_FLAGS = ["-O0", "-pthread"]


@pytest.fixture(params=NAMES)
def kernels(request, monkeypatch):
    """The module that now serves CPU tensors; None: plain Torch. On one thread: threads have a test of their own."""
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)
    if request.param == "torch":
        monkeypatch.setattr(tensor, "_kernels", lambda t: None)
        return None
    if request.param == GPU_TEXT:
        use_gpu_text(monkeypatch, _shim(request.config))
        return _tensor_cuda
    library = _tensor_native._prepared(_cpu_library(request.param))
    assert library is not None, "the library has no tensor kernels"
    monkeypatch.setattr(_tensor_native, "library", lambda: library)
    assert tensor._kernels(torch.zeros(1)) is _tensor_native
    return _tensor_native


def _cpu_library(isa: str) -> ctypes.CDLL:
    given = os.environ.get("MEMEXT_TENSOR_LIB")
    if given:
        if isa != "base":
            pytest.skip("one library is given")
        return ctypes.CDLL(given)
    path = _build.library_path(isa)
    if not path.exists() or not _build.runs_here(isa):
        pytest.skip(f"{path.name} is not built, or this processor cannot run it")
    return ctypes.CDLL(str(path))


def _shim(config: pytest.Config) -> ctypes.CDLL:
    given = os.environ.get("MEMEXT_TENSOR_SHIM")
    return ctypes.CDLL(given or str(build_shim(config.cache.mkdir("memext_shim"), SHIM_FLAGS)))


def build_shim(folder: Path, flags: list[str]) -> Path:
    """Compiled once per state of the sources."""
    digest = hashlib.sha256(repr(flags).encode())
    for name in ("call.h", "config.h", "half.h", "shim.h", "tensor.h", "tensor.cu", "tensor_shim.cpp"):
        digest.update((_build.KERNELS / name).read_bytes())
    target = folder / f"tensor_{digest.hexdigest()[:16]}"
    path = _build.library_path("base", target)
    try:
        return path if path.exists() else _build.build_one("base", target, extra=flags,
                                                           source=_build.KERNELS / "tensor_shim.cpp")
    except _build.BuildError as problem:
        pytest.skip(str(problem))


def use_gpu_text(monkeypatch, library: ctypes.CDLL) -> list[str]:
    """CPU tensors go through _tensor_cuda, whose launches run `library`. Returns the names launched, as they come."""
    launched: list[str] = []

    class Module:
        def __init__(self, path):
            self.kind = Path(path).stem

        def get_function(self, name):
            function = getattr(library, f"{name}_{self.kind}")
            function.restype = None

            def launch(grid, block, arguments):
                launched.append(name)
                assert block == (256,) and grid[0] >= 1
                # Few and small blocks: the loops over the grid, and threads past the end, must run.
                function(ctypes.c_uint(min(3, grid[0] + 1)), ctypes.c_uint(64), *map(_c_value, arguments))

            launch.kernel = None
            return launch

    cupy = SimpleNamespace(RawModule=Module, cuda=SimpleNamespace(Device=nullcontext))
    monkeypatch.setattr(tensor, "_kernels", lambda t: _tensor_cuda)
    monkeypatch.setattr(_tensor_cuda, "_functions", {})
    monkeypatch.setattr(_tensor_cuda, "_image", lambda dtype, capability: _tensor_cuda.STORED[dtype].lower())
    monkeypatch.setattr(cuda, "_cupy", lambda: (cupy, None))
    monkeypatch.setattr(cuda, "_stream", lambda address, index: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    return launched


def _c_value(argument):
    """What CuPy would pass to a kernel: numpy's numbers by their type, a structure by value (here: by address)."""
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    types = {np.uintp: ctypes.c_void_p, np.int64: ctypes.c_longlong, np.int32: ctypes.c_int,
             np.float64: ctypes.c_double}
    return types[type(argument)](argument.item())
