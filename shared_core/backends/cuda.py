"""GPU kernels: kernels/neuron.cu compiled at first use (NVRTC), loaded and launched by CuPy on Torch's current stream.

One kernel a module: the forward of a neuron and its dtypes, or the backward of these with one surrogate and one block
size (4, 8, 16 or 32 steps, chosen by T; T itself is a run-time value), for an input that was kept or one that is
rebuilt (bits, an affine); either for a membrane of its own, or one that channel groups share. Compiled kernels are kept
in memory per device and on disk in MEMEXT_CACHE (default: memext in the user's cache folder), so a later process
compiles nothing.

A launch allocates nothing and waits for nothing, so it can be captured in a CUDA graph; the kernels must then exist,
which one warm-up iteration before the capture ensures.
"""
from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._build import KERNELS
from ..errors import MemextError
from . import _nvrtc, fused
from ._call import BLOCK, Call

THREADS = 128  # kThreads
BLOCK_SIZES = (4, 8, 16, BLOCK)
MAX_GRID = 2**31 - 1
_STORED = ("float", "double", "Float16", "BFloat16")  # by Type of call.h
_ARGUMENT = np.dtype((np.void, ctypes.sizeof(Call)))
_functions: dict[tuple[int, Kernel], object] = {}


@dataclass(frozen=True)
class Kernel:
    """What a module is compiled for. steps 0: forward, which has no surrogate ('')."""

    neuron: str
    variant: int
    compute: str
    x: str
    spikes: str
    surrogate: str = ""
    steps: int = 0
    rebuilt: bool = False  # bits or an affine are given
    shared: bool = False   # channel groups share a membrane

    @property
    def name(self) -> str:
        """As profilers show it."""
        kind = f"backward{self.steps}_{self.surrogate}" if self.steps else "forward"
        kind += ("_rebuilt" if self.rebuilt else "") + ("_shared" if self.shared else "")
        return f"memext_{kind}_{self.neuron}{self.variant}_{self.x}_{self.spikes}".lower()

    @property
    def options(self) -> tuple[str, ...]:
        values = {"NAME": self.name, "NEURON": self.neuron, "VARIANT": self.variant, "R": self.compute, "X": self.x,
                  "S": self.spikes, "SURROGATE": self.surrogate or "NoGradient", "STEPS": self.steps,
                  "REBUILT": str(self.rebuilt).lower(), "SHARED": str(self.shared).lower()}
        return tuple(f"-DMEMEXT_{key}={value}" for key, value in values.items())


@lru_cache(maxsize=1)
def _names() -> tuple[dict[int, str], dict[int, str]]:
    """Structs of neuron.h and of surrogate.h by id."""
    listed = (KERNELS / "surrogate.h").read_text().split("#define MEMEXT_SURROGATES(X)")[1]
    surrogates = {int(i): name for i, name in re.findall(r"X\((\d+), (\w+),", listed)}
    return {i: name for name, i in fused.kernel_ids().items()}, surrogates


def kernel_of(call: Call, direction: str) -> Kernel:
    """The kernel that serves a call."""
    neurons, surrogates = _names()
    common = (neurons[call.neuron], call.variant, _STORED[call.compute], _STORED[call.x_type],
              _STORED[call.spike_type])
    shared = call.groups > 1
    if direction == "forward":
        return Kernel(*common, shared=shared)
    steps = next((size for size in BLOCK_SIZES if call.steps <= size), BLOCK)
    return Kernel(*common, surrogates[call.surrogate], steps, bool(call.bits or call.x_scale.data), shared)


@lru_cache(maxsize=1)
def source() -> str:
    return (KERNELS / "neuron.cu").read_text()


def compile(kernel: Kernel, capability: int) -> _nvrtc.Compiled:
    """Compile one kernel; no GPU needed."""
    return _nvrtc.compile(source(), kernel.options, capability)


def unavailable() -> str | None:
    """None if the kernels can run, else the reason."""
    if not torch.cuda.is_available():
        return "Torch sees no CUDA device"
    if torch.version.hip is not None:
        return "the GPU kernels are CUDA; this Torch is built for ROCm"
    return _cupy()[1] or _nvrtc.unavailable()


@lru_cache(maxsize=1)
def _cupy():
    """(module, None), or (None, why there is none). Imported here, at the first CUDA tensor, and nowhere else."""
    try:
        import cupy
    except Exception as problem:  # not installed, or built for another CUDA: then it raises what it likes
        major = (torch.version.cuda or "12").split(".")[0]
        return None, (f"CuPy cannot be imported ({type(problem).__name__}: {problem}); install the extra that fits "
                      f"Torch's CUDA {torch.version.cuda}: pip install 'memext[cuda{major}]'")
    return cupy, None


def forward(spec, x: Tensor, state, params, *, keep: bool, traces: bool = False):
    return fused.forward(spec, x, state, params, keep=keep, traces=traces, threads=0, run=partial(_run, x.device))


def backward(spec, x: Tensor, *args, **rebuilt):
    return fused.backward(spec, x, *args, threads=0, run=partial(_run, x.device), **rebuilt)


def single_step_backward(spec, dtype, device, *args):
    return fused.single_step_backward(spec, dtype, device, *args, threads=0, run=partial(_run, device))


def _run(device: torch.device, call: Call, direction: str) -> None:
    """Launch on the device's current Torch stream. What a call points to may be freed right after it: Torch's
    allocator hands memory freed on a stream to later work on that stream only."""
    if call.neurons == 0:
        return
    cupy, _ = _cupy()
    with torch.cuda.device(device), cupy.cuda.Device(device.index):
        function = _function(device.index, kernel_of(call, direction))
        blocks = min((call.neurons + THREADS - 1) // THREADS, MAX_GRID)
        argument = np.frombuffer(call, dtype=_ARGUMENT)  # one element: CuPy passes its bytes by value
        with _stream(torch.cuda.current_stream(device).cuda_stream, device.index):
            function((blocks,), (THREADS,), (argument,))


@dataclass(frozen=True)
class _Handle:
    """A stream's address behind the protocol that CuPy reads (Torch's own streams have it from 2.9 on)."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@lru_cache(maxsize=64)
def _stream(address: int, index: int):
    cuda = _cupy()[0].cuda
    if hasattr(cuda.Stream, "from_external"):
        return cuda.Stream.from_external(_Handle(address))
    return cuda.ExternalStream(address, index)  # before CuPy 14


def _function(index: int, kernel: Kernel):
    found = _functions.get((index, kernel))
    if found is None:
        if torch.cuda.is_current_stream_capturing():
            raise MemextError(f"cuda backend: {kernel.name} is not compiled yet, and a CUDA graph is being captured; "
                              "run one iteration of the same shapes and dtypes before the capture")
        major, minor = torch.cuda.get_device_capability(index)
        module = _cupy()[0].RawModule(path=str(_image(kernel, 10 * major + minor)))
        found = _functions[index, kernel] = module.get_function(kernel.name)
        found.kernel  # noqa: B018  loaded now: RawKernel would do it at its first launch
    return found


# ---- compiled kernels on disk -----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _sources_hash() -> str:
    return hash_of(*sorted(KERNELS.glob("*.h")), KERNELS / "neuron.cu")


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """MEMEXT_CACHE, else memext in the user's cache folder, else (not writable) a fresh temporary folder."""
    base = os.environ.get("MEMEXT_CACHE")
    folder = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memext"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="memext-"))


def kept_image(name: str, depends_on: tuple, capability: int, compile: Callable[[], _nvrtc.Compiled]) -> Path:
    """File with a compiled module; compiled first if there is none.  depends_on: with compiler and flags, all that the
    code depends on."""
    flags = [f for f in _nvrtc.FLAGS if not f.startswith("-I")]
    key = repr((depends_on, flags, capability, _nvrtc.version()))
    stem = f"{name}_sm{capability}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for suffix in (".cubin", ".ptx"):
        if (cache_folder() / (stem + suffix)).exists():
            return cache_folder() / (stem + suffix)
    compiled = compile()
    path = cache_folder() / (stem + (".ptx" if compiled.is_ptx else ".cubin"))
    handle, building = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(compiled.image)
    os.replace(building, path)  # whole or not there: other processes may be doing the same
    return path


def hash_of(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _image(kernel: Kernel, capability: int) -> Path:
    return kept_image(kernel.name, (_sources_hash(), kernel.options), capability, lambda: compile(kernel, capability))
