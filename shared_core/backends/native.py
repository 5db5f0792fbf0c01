"""CPU kernels: finds the compiled library, picks the instruction set, and calls it through ctypes.

MEMEXT_ISA=base|avx2|avx512 forces an instruction set; MEMEXT_LIB=path loads one library file (the tests use it for
sanitized builds). Threads: as many as Torch uses. On Linux, Torch's wheels and this library share one libgomp, hence
one pool of threads.
"""
from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .. import _build
from ..errors import MemextError
from . import fused
from ._call import Call

_PROBLEMS = {1: "the library does not know this neuron or variant", 2: "the library does not know this surrogate",
             3: "out of memory"}


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("memext_forward", "memext_backward"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(Call)], ctypes.c_int
    library.memext_runs_here.argtypes = [ctypes.c_char_p]
    library.memext_prefer_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_longlong]
    library.memext_prefer_huge_pages.restype = None
    if library.memext_call_size() != ctypes.sizeof(Call):
        raise OSError(f"{path.name} is of another version of this package; reinstall it")
    return library


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL | None, str]:
    """(library, instruction set), or (None, why there is none)."""
    forced = os.environ.get("MEMEXT_LIB")
    try:
        if forced:
            return _load(Path(forced)), "forced"
        base = _load(_build.library_path("base"))
        wanted = os.environ.get("MEMEXT_ISA")
        for isa in ([wanted] if wanted else ["avx512", "avx2"]):
            path = _build.library_path(isa)
            if path.exists() and base.memext_runs_here(isa.encode()):
                return _load(path), isa
        if wanted and wanted != "base":
            there = [isa for isa in _build.instruction_sets()
                     if _build.library_path(isa).exists() and base.memext_runs_here(isa.encode())]
            return None, (f"MEMEXT_ISA={wanted!r} is not available here; built and able to run: {', '.join(there)} "
                          "(unset it to use the widest)")
        return base, "base"
    except OSError as problem:
        return None, f"no compiled CPU kernels ({problem}); `python -m shared_core._build` builds them"


def unavailable() -> str | None:
    """None if the kernels can run, else the reason."""
    library, reason = _library()
    return None if library is not None else reason


def instruction_set() -> str | None:
    library, name = _library()
    return name if library is not None else None


def _run(call: Call, direction: str) -> None:
    library, _ = _library()
    code = (library.memext_forward if direction == "forward" else library.memext_backward)(ctypes.byref(call))
    if code:
        raise MemextError(f"native backend: {_PROBLEMS.get(code, code)} (neuron {call.neuron}, variant {call.variant}, "
                          f"surrogate {call.surrogate})")


def forward(spec, x: Tensor, state, params, *, keep: bool, traces: bool = False):
    return fused.forward(spec, x, state, params, keep=keep, traces=traces, threads=_threads(x.numel()), run=_run,
                         fresh=_fresh)


def backward(spec, x: Tensor, *args, **rebuilt):
    return fused.backward(spec, x, *args, threads=_threads(x.numel()), run=_run, fresh=_fresh, sums_in_kernel=True,
                          **rebuilt)


def single_step_backward(spec, dtype, device, layout, *args):
    return fused.single_step_backward(spec, dtype, device, layout, *args, threads=_threads(layout.neurons), run=_run,
                                      fresh=_fresh)


def _fresh(t: Tensor) -> Tensor:
    """A tensor just allocated. Large ones get huge pages, or the page faults cost more than the kernel."""
    size = t.numel() * t.element_size()
    if size >= 8 << 20:
        _library()[0].memext_prefer_huge_pages(t.data_ptr(), size)
    return t


def _threads(elements: int) -> int:
    """One thread for what is too small to share; the limit is Torch's own grain size."""
    return 1 if elements < 32768 else torch.get_num_threads()
