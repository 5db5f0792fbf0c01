"""Where a neuron runs: `native` (compiled CPU kernels), `cuda` (CuPy kernels), `reference` (plain Torch).

Chosen per tensor device; a slower choice than the device allows is said once, with the reason. A backend asked for
by name never falls back.
"""
from __future__ import annotations

import warnings
from types import ModuleType

import torch

from .._planning import is_planning
from ..dynamics import Dynamics
from ..errors import MemextError
from ..surrogate import Surrogate

__all__ = ["NAMES", "choose", "why_not_fused"]

NAMES = ("auto", "reference", "native", "cuda")
_FUSED = {"cpu": "native", "cuda": "cuda"}
_said: set[str] = set()


def why_not_fused(dynamics: Dynamics, surrogate: Surrogate, device: torch.device) -> str | None:
    """None if a kernel serves this combination on this device, else the reason it does not."""
    if dynamics.struct is None:
        return f"{dynamics.name} has no struct in kernels/neuron.h"
    if surrogate.kernel_id is None:
        return f"surrogate {surrogate.name!r} has no kernel (the shipped ones do; see shared_core.surrogate)"
    if device.type not in _FUSED:
        return f"there is no kernel backend for device {device.type!r}"
    return _module(_FUSED[device.type]).unavailable()


def choose(dynamics: Dynamics, surrogate: Surrogate, device: torch.device, wanted: str = "auto") -> ModuleType:
    """The backend module for a call. Raises MemextError if `wanted` is unknown or cannot serve the call."""
    if wanted not in NAMES:
        raise MemextError(f"backend is {wanted!r}; allowed: {', '.join(NAMES)}")
    if wanted == "reference":
        return _module("reference")
    reason = why_not_fused(dynamics, surrogate, device)
    if wanted != "auto" and _FUSED.get(device.type) != wanted:
        reason = f"the tensors are on {device.type!r}"
    if reason is None:
        return _module("fake" if is_planning() else _FUSED[device.type])
    if wanted != "auto":
        raise MemextError(f"backend={wanted!r} was asked for, but {reason}; use backend='auto' or 'reference'")
    if reason not in _said:
        _said.add(reason)
        warnings.warn(f"memext: running on the slower Torch path: {reason}", RuntimeWarning, stacklevel=4)
    return _module("reference")


def _module(name: str) -> ModuleType:
    if name == "native":
        from . import native as module
    elif name == "cuda":
        from . import cuda as module
    elif name == "fake":
        from . import fake as module
    else:
        from . import reference as module
    return module
