"""Which code runs a reversible neuron: the compiled kernels, plain Torch, or the equations under Torch's autograd."""
from __future__ import annotations

import warnings
from types import ModuleType

import torch

from .._autograd import _learns
from .._planning import is_planning
from ..errors import MemextError
from ..surrogate import Surrogate

__all__ = ["BACKENDS", "choose", "why_not_invertible"]

BACKENDS = ("auto", "native", "cuda", "torch", "reference")
_KERNELS = {"cpu": "native", "cuda": "cuda"}
_said: set[str] = set()


def why_not_invertible(surrogate: Surrogate) -> str | None:
    """None if the inverse can take the decisions of the forward pass again, else why it cannot."""
    if surrogate.random:
        return f"surrogate {surrogate.name!r} draws random numbers, or may (say so with `random = False`)"
    if surrogate.alphabet == "real":
        return (f"surrogate {surrogate.name!r} emits real values, or may (say so with `alphabet = 'binary'`), which "
                "cannot be subtracted from the output exactly")
    if surrogate.fn is not None and _learns(surrogate.fn):
        return f"surrogate {surrogate.name!r} learns"
    return None


def choose(surrogate: Surrogate, device: torch.device, wanted: str = "auto") -> ModuleType | None:
    """The module with forward() and backward(); None: no inverse, the equations under Torch's autograd.

    Raises MemextError if `wanted` is unknown, or cannot serve and is not "auto", which falls back and says so once.
    """
    if wanted not in BACKENDS:
        raise MemextError(f"reversible neuron: backend is {wanted!r}; allowed: {', '.join(BACKENDS)}")
    if wanted == "reference":
        return None
    reason = why_not_invertible(surrogate)
    if reason is not None:
        if wanted != "auto":
            raise MemextError(f"reversible neuron: backend={wanted!r} was asked for, but {reason}; "
                              "use backend='reference', which keeps every step")
        _say(f"reversible neuron: every step is kept for the backward pass: {reason}")
        return None
    if is_planning():
        from . import _fake as module
        return module
    if wanted != "torch":
        reason = _why_no_kernel(surrogate, device, wanted)
        if reason is None:
            return _kernels(device)
        if wanted != "auto":
            raise MemextError(f"reversible neuron: backend={wanted!r} was asked for, but {reason}; "
                              "use backend='auto' or 'torch'")
        _say(f"reversible neuron: running on the slower Torch path: {reason}")
    from . import _plain
    return _plain


def _why_no_kernel(surrogate: Surrogate, device: torch.device, wanted: str) -> str | None:
    if device.type not in _KERNELS:
        return f"there is no kernel for device {device.type!r}"
    if wanted != "auto" and _KERNELS[device.type] != wanted:
        return f"the tensors are on {device.type!r}"
    if surrogate.kernel_id is None:
        return f"surrogate {surrogate.name!r} has no kernel"
    return _kernels(device).unavailable()


def _kernels(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from . import _cuda as module
    else:
        from . import _native as module
    return module


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(f"memext: {text}", RuntimeWarning, stacklevel=5)
