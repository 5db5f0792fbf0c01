"""A threshold for early exit from held-out samples: what each threshold would do is known from one run of all steps.

With M[t] the least entropy of a sample up to step t, it stops at step t at the latest under every threshold above M[t].
So its steps are 1 + sum over t < T of [M[t] >= threshold], and every M is a threshold at which something changes.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MemextError
from ..report import text_table

__all__ = ["Calibration", "calibrated", "pairs"]

_SHOWN = 12  # points of the curve in table()


class Point(NamedTuple):
    """What a threshold does on the calibration set."""

    threshold: float
    accuracy: float
    mean_steps: float


@dataclass(frozen=True)
class Calibration:
    """The chosen threshold, and what it does on the calibration set.  exits: share of samples that stop at step 1 to T.
    full_accuracy: with all T steps.  curve: from threshold 0 (all steps) up, a point wherever something changes, at
    most 200 of them."""

    threshold: float
    accuracy: float
    mean_steps: float
    exits: tuple[float, ...]
    full_accuracy: float
    samples: int
    curve: tuple[Point, ...]

    def to_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        """A line per threshold, the chosen one first."""
        every = max(1, len(self.curve) // _SHOWN)
        points = [Point(self.threshold, self.accuracy, self.mean_steps), *self.curve[::every]]
        rows = [(f"{p.threshold:.5g}", f"{p.accuracy:.4f}", f"{p.mean_steps:.3f}") for p in points]
        return text_table(rows, ("threshold", "accuracy", "mean steps"))


def pairs(loader: Iterable, labels: bool = True):
    """(x, labels) of each batch; labels None where the loader has none and they are not needed."""
    for batch in loader:
        if isinstance(batch, Tensor):
            batch = (batch, None)
        if not isinstance(batch, tuple | list) or len(batch) != 2 or (labels and batch[1] is None):
            raise MemextError(f"early_exit: the loader gave {type(batch).__name__}"
                              f"{f' of {len(batch)}' if hasattr(batch, '__len__') else ''}; (x, labels) is needed")
        yield batch


def calibrated(early, loader: Iterable, accuracy: float | None, drop: float | None, mean_steps: float | None
               ) -> Calibration:
    """See EarlyExit.calibrate."""
    _check(accuracy, drop, mean_steps)
    entropies, right = _all_steps(early, loader)
    thresholds, accuracies, steps = _curve(entropies, right)
    full = accuracies[0].item()
    if mean_steps is not None:
        allowed = steps <= mean_steps
    else:
        allowed = accuracies >= (accuracy if accuracy is not None else full - drop) - 1e-12
    if not bool(allowed.any()):  # a mean of 1 or more is always reached
        best = int(accuracies.argmax())
        raise MemextError(f"early_exit: no threshold reaches an accuracy of {accuracy}; the highest is "
                          f"{accuracies[best]:.4f} with {steps[best]:.2f} steps of {len(right)}")
    where = allowed.nonzero()[:, 0]
    at = int(where[0] if mean_steps is not None else where[-1])  # the fewest steps are at the highest threshold
    threshold = _between(thresholds, at)
    shown = range(0, len(thresholds), max(1, len(thresholds) // 200))
    curve = tuple(Point(_between(thresholds, i), accuracies[i].item(), steps[i].item()) for i in shown)
    return Calibration(threshold, accuracies[at].item(), steps[at].item(), _exits(entropies, threshold), full,
                       entropies.shape[1], curve)


def _all_steps(early, loader: Iterable) -> tuple[Tensor, Tensor]:
    """(entropy [T, n], whether the prediction is right [T, n]) of all samples, if nobody leaves."""
    from .early_exit import entropy

    entropies, right = [], []
    for x, labels in pairs(loader):
        means = early.all_steps(x)
        entropies.append(entropy(means).double().cpu())
        right.append((means.argmax(-1) == labels.to(means.device)).double().cpu())
    if not entropies:
        raise MemextError("early_exit: the loader is empty; held-out (x, labels) are needed to calibrate")
    return torch.cat(entropies, 1), torch.cat(right, 1)


def _curve(entropies: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(thresholds, accuracy, mean steps): entry i holds above thresholds[i], up to thresholds[i + 1]."""
    steps, samples = entropies.shape
    least = entropies.cummin(0).values[:-1].flatten()       # M[t], t < T: above it, a sample stops at t or before
    gain = (right[:-1] - right[1:]).flatten()               # ... and is as right as at t, not as at t + 1
    least, order = least.sort()
    values, counts = least.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0) - 1
    start = torch.zeros(1, dtype=torch.float64)
    accuracy = torch.cat([start, gain[order].cumsum(0)[ends]]) / samples + right[-1].mean()
    mean_steps = steps - torch.cat([start, counts.cumsum(0).double()]) / samples
    return torch.cat([start - 1, values]), accuracy, mean_steps


def _between(thresholds: Tensor, at: int) -> float:
    """A threshold well inside its interval, so that rounding moves nobody across it. The first is 0: nobody stops."""
    if at == 0:
        return 0.0
    low = thresholds[at].item()
    high = thresholds[at + 1].item() if at + 1 < len(thresholds) else max(1.0, low) + 0.01
    return low + (high - low) / 2


def _exits(entropies: Tensor, threshold: float) -> tuple[float, ...]:
    before = (entropies.cummin(0).values[:-1] >= threshold).sum(0)  # steps that did not stop it
    return tuple((torch.bincount(before, minlength=len(entropies)).double() / entropies.shape[1]).tolist())


def _check(accuracy, drop, mean_steps) -> None:
    given = {name: value for name, value in (("accuracy", accuracy), ("drop", drop), ("mean_steps", mean_steps))
             if value is not None}
    if len(given) != 1:
        raise MemextError(f"early_exit: calibrate got {', '.join(given) or 'no target'}; exactly one of accuracy=, "
                          "drop= and mean_steps= is needed")
    (name, value), = given.items()
    low, high = (1, float("inf")) if name == "mean_steps" else (0, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise MemextError(f"early_exit: calibrate: {name} is {value!r}; allowed: from {low} to {high}")
