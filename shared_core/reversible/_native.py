"""The reversible neuron's CPU kernels (kernels/reversible_cpu.cpp), in the library that backends/native.py loads.

Calling convention: _plain.py. A library without these functions (of an older build) counts as none.
"""
from __future__ import annotations

import ctypes
from ctypes import POINTER
from functools import lru_cache

import torch
from torch import Tensor

from ..backends import native
from ..errors import MemextError
from ._call import ReversibleCall, filled, new_largest

__all__ = ["backward", "forward", "unavailable"]

_PROBLEMS = {2: "the library does not know this surrogate", 3: "out of memory"}


@lru_cache(maxsize=4)
def prepared(library: ctypes.CDLL | None) -> ctypes.CDLL | None:
    """A loaded library with the signatures set, or None if it has not these functions, in this version."""
    if library is None or not hasattr(library, "memext_reversible_call_size"):
        return None
    for name in ("memext_reversible_forward", "memext_reversible_backward"):
        function = getattr(library, name)
        function.argtypes, function.restype = [POINTER(ReversibleCall)], ctypes.c_int
    return library if library.memext_reversible_call_size() == ctypes.sizeof(ReversibleCall) else None


def _library() -> ctypes.CDLL | None:
    return prepared(native._library()[0])


def unavailable() -> str | None:
    """None if the kernels can run, else the reason."""
    if native.unavailable() is not None:
        return native.unavailable()
    if _library() is None:
        return "the compiled CPU kernels are of another version; `python -m shared_core._build` builds them"
    return None


def forward(eq, x: Tensor, v: Tensor | None, surrogate, y: Tensor, v_out: Tensor) -> Tensor:
    largest = new_largest(x)
    native._fresh(y)
    call = filled(eq, surrogate, x, _threads(x), x=x, initial=v, y=y, final_state=v_out, largest=largest)
    _run("memext_reversible_forward", call)
    return largest.view(torch.float32)


def backward(eq, y: Tensor, v: Tensor | None, surrogate, grad_y: Tensor | None, grad_v: Tensor | None, grad_x: Tensor,
             grad_v0: Tensor) -> None:
    native._fresh(grad_x)
    call = filled(eq, surrogate, y, _threads(y), y=y, initial=v, grad_y=grad_y, grad_final=grad_v, grad_x=grad_x,
                  grad_initial=grad_v0)
    _run("memext_reversible_backward", call)


def _run(name: str, call: ReversibleCall) -> None:
    code = getattr(_library(), name)(ctypes.byref(call))
    if code:
        raise MemextError(f"reversible neuron, native backend: {_PROBLEMS.get(code, code)}")


def _threads(t: Tensor) -> int:
    return native._threads(t.numel())
