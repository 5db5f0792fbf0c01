"""Why a step could not be traced: the model, the sample, or memext itself."""
from __future__ import annotations

import traceback
from pathlib import Path

from torch import nn

from .errors import MemextError

__all__ = ["TimeAsBatch", "is_ours", "of_memext", "of_model", "of_other_batch"]

_OURS = tuple(str(Path(__file__).parents[1] / package) + "/" for package in
              ("shared_core", "sj_memext", "snntorch_memext"))
_CALLERS = tuple(f"_plan_{name}.py" for name in ("trace", "ledger", "calls", "opaque"))  # they call the user's code
_WITHOUT_VALUES = ("planning runs on tensors without values: code that asks for one, with .item() or an `if`, cannot "
                   "be planned")


class TimeAsBatch(MemextError):
    """The dimension that was to be the batch is the time."""


def of_model(model: nn.Module, shape: tuple[int, ...], batch_dim: int, problem: Exception) -> str:
    """The model as its author wrote it fails."""
    text = (f"a step of this {type(model).__name__} on input {shape} raised {_said(problem)} ({_WITHOUT_VALUES}; is "
            "the input's shape right?)")
    if batch_dim == 1 and any(getattr(m, "step_mode", None) == "s" for m in model.modules()):
        text += (". Modules of it are in step mode 's', which take one step: if the forward has no loop over time, "
                 "call set_step_mode(net, 'm') first, or pass batch_dim=0 and one step's shape")
    return text


def of_other_batch(model: nn.Module, shape: tuple[int, ...], batch_dim: int, problem: Exception) -> str:
    """The model runs, but not with another number of samples."""
    return (f"with {shape[batch_dim]} samples in dimension {batch_dim} a step of this {type(model).__name__} raised "
            f"{_said(problem)}; is that number part of the model, or are the samples in dimension {1 - batch_dim} "
            f"(batch_dim={1 - batch_dim})?")


def of_memext(name: str, model: nn.Module, shape: tuple[int, ...], problem: Exception) -> str:
    """The model runs, but not under our method."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__)
              if f.filename.startswith(_OURS) and not f.filename.endswith(_CALLERS)]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (f"method {name}: memext itself failed on input {shape} of this {type(model).__name__}, which runs without "
            f"it: {_said(problem)}{at}. This is a fault of memext; please report it, with this line")


def is_ours(problem: Exception) -> bool:
    """Was it raised in a line of this package, not in Torch or in the model?"""
    frames = traceback.extract_tb(problem.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_OURS) and not frames[-1].filename.endswith(_CALLERS)


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem)[:300]}"
