"""The reversible neuron's GPU kernels: kernels/reversible.cu compiled at first use (NVRTC), loaded and launched by CuPy
on Torch's current stream, kept on disk as those of backends/cuda.py are. Calling convention: _plain.py.

One kernel a module: forward per arithmetic type; backward per type, surrogate and block size (4, 8, 16, 32 steps).
"""
from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._build import KERNELS
from ..backends import _nvrtc, cuda
from ..errors import MemextError
from ._call import ReversibleCall, filled, new_largest

__all__ = ["Kernel", "backward", "compile", "forward", "unavailable", "workspace"]

THREADS = 128  # kReversibleThreads
BLOCK_SIZES = (4, 8, 16, 32)
_STORED = {torch.float32: "float", torch.float64: "double"}
_ARGUMENT = np.dtype((np.void, ctypes.sizeof(ReversibleCall)))
_functions: dict[tuple[int, Kernel], object] = {}


@dataclass(frozen=True)
class Kernel:
    """What a module is compiled for. steps 0: forward, which has no surrogate ('')."""

    compute: str
    surrogate: str = ""
    steps: int = 0

    @property
    def name(self) -> str:
        kind = f"backward{self.steps}_{self.surrogate}" if self.steps else "forward"
        return f"memext_reversible_{kind}_{self.compute}".lower()

    @property
    def options(self) -> tuple[str, ...]:
        return (f"-DMEMEXT_NAME={self.name}", f"-DMEMEXT_R={self.compute}",
                f"-DMEMEXT_SURROGATE={self.surrogate or 'NoGradient'}", f"-DMEMEXT_STEPS={self.steps}")


def unavailable() -> str | None:
    """None if the kernels can run, else the reason."""
    return cuda.unavailable()


def compile(kernel: Kernel, capability: int) -> _nvrtc.Compiled:
    """Compile one kernel; no GPU needed."""
    return _nvrtc.compile((KERNELS / "reversible.cu").read_text(), kernel.options, capability, "reversible.cu")


def forward(eq, x: Tensor, v: Tensor | None, surrogate, y: Tensor, v_out: Tensor) -> Tensor:
    largest = new_largest(x)
    call = filled(eq, surrogate, x, 0, x=x, initial=v, y=y, final_state=v_out, largest=largest)
    _launch(x.device, Kernel(_STORED[x.dtype]), call)
    return largest.view(torch.float32)


def backward(eq, y: Tensor, v: Tensor | None, surrogate, grad_y: Tensor | None, grad_v: Tensor | None, grad_x: Tensor,
             grad_v0: Tensor) -> None:
    size, anchors, fired = workspace(y)
    call = filled(eq, surrogate, y, 0, y=y, initial=v, grad_y=grad_y, grad_final=grad_v, grad_x=grad_x,
                  grad_initial=grad_v0, anchors=anchors, fired=fired)
    _, surrogates = cuda._names()
    _launch(y.device, Kernel(_STORED[y.dtype], surrogates[call.surrogate], size), call)


def workspace(y: Tensor) -> tuple[int, Tensor | None, Tensor | None]:
    """Block size for y [T, outer, groups, inner], and the scratch that several blocks need: one potential per block and
    a bit per step, of each column."""
    steps, outer, _, inner = y.shape
    size = next((s for s in BLOCK_SIZES if steps <= s), BLOCK_SIZES[-1])
    blocks = -(-steps // size)
    if blocks == 1:
        return size, None, None
    return (size, y.new_empty(blocks - 1, outer * inner),
            torch.empty(-(-steps // 32), outer * inner, dtype=torch.int32, device=y.device))


def _launch(device: torch.device, kernel: Kernel, call: ReversibleCall) -> None:
    columns = call.outer * call.inner
    if columns == 0:
        return
    cupy, _ = cuda._cupy()
    with torch.cuda.device(device), cupy.cuda.Device(device.index):
        function = _function(device.index, kernel)
        blocks = min(-(-columns // THREADS), cuda.MAX_GRID)
        with cuda._stream(torch.cuda.current_stream(device).cuda_stream, device.index):
            function((blocks,), (THREADS,), (np.frombuffer(call, dtype=_ARGUMENT),))


def _function(index: int, kernel: Kernel):
    found = _functions.get((index, kernel))
    if found is None:
        if torch.cuda.is_current_stream_capturing():
            raise MemextError(f"cuda backend: {kernel.name} is not compiled yet, and a CUDA graph is being captured; "
                              "run one iteration of the same shapes and dtypes before the capture")
        major, minor = torch.cuda.get_device_capability(index)
        module = cuda._cupy()[0].RawModule(path=str(_image(kernel, 10 * major + minor)))
        found = _functions[index, kernel] = module.get_function(kernel.name)
        found.kernel  # noqa: B018  loaded now, not at its first launch
    return found


@lru_cache(maxsize=1)
def _sources_hash() -> str:
    return cuda.hash_of(*sorted(KERNELS.glob("*.h")), KERNELS / "reversible.cu")


def _image(kernel: Kernel, capability: int) -> Path:
    return cuda.kept_image(kernel.name, (_sources_hash(), kernel.options), capability,
                           lambda: compile(kernel, capability))
