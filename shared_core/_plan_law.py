"""From the ledger of a step to its peak, for the traced batch and, by an affine law per storage, for any other."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._plan_ledger import END
from ._plan_trace import Trace
from .errors import MemextError

__all__ = ["Peak", "is_law_batch", "largest_batch", "law_batch", "peak_of"]

_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039)
_MOST = 1 << 24  # samples; past that a step is limited by something else
_TRIES = 10


@dataclass(frozen=True)
class Peak:
    """The highest moment of a training step, bytes; the parts sum to `peak`.

    phase: forward, backward or optimizer.  activations: made in the forward and still needed at the backward's begin.
    transients: all else alive at that moment: what an operator reads or writes, gradients of activations.
    inputs: what the model is called with.  step: what the step allocates by itself, gradients, activations and
    transients: `memory.measure`'s peak_bytes for forward and backward.
    """

    peak: int
    phase: str
    parameters: int
    inputs: int
    optimizer: int
    gradients: int
    activations: int
    transients: int
    step: int


def peak_of(trace: Trace, optimizer=None, batch: int | None = None) -> Peak:
    """optimizer: an OptimizerCost, or None for none.  batch: another than the traced one, if that is a `law_batch`."""
    sizes, inputs = trace.nbytes, trace.input_bytes
    if batch is not None:
        sizes, inputs = _scaled(sizes, trace.batch, batch), inputs * batch // trace.batch
    events, order = trace.order
    live = np.cumsum(np.concatenate([sizes, -sizes])[order])
    highest = int(np.argmax(live))
    at, step = int(events[highest]), int(live[highest])
    alive = (trace.born <= at) & (trace.died > at)
    kept = alive & (trace.born <= trace.backward_at) & (trace.died > trace.backward_at) & ~trace.gradient
    gradients = int(sizes[alive & trace.gradient].sum())
    activations = int(sizes[kept].sum()) if at > trace.backward_at else int(
        sizes[alive & (trace.died > trace.backward_at)].sum())
    state = 0 if optimizer is None else optimizer.state(trace.parameter_sizes)
    fixed = trace.weights_bytes + inputs + state
    peak = Peak(fixed + step, "backward" if at > trace.backward_at else "forward", trace.weights_bytes, inputs, state,
                gradients, activations, step - gradients - activations, step)
    if optimizer is None:
        return peak
    left, work = sizes[trace.died == END], optimizer.transients(trace.parameter_sizes)
    grown = fixed + int(left.sum()) + work
    if grown <= peak.peak:
        return peak
    gradients = int(sizes[(trace.died == END) & trace.gradient].sum())
    return Peak(grown, "optimizer", trace.weights_bytes, inputs, state, gradients, int(left.sum()) - gradients, work,
                step)


def law_batch(constants) -> int:
    """A batch that tells, of a traced size, whether it grows with the batch: eight times a prime that divides none of
    these sizes (parameters). Eight, because spikes are packed by eight."""
    for prime in _PRIMES:
        if all(size % prime for size in constants if size):
            return 8 * prime
    return 8 * _PRIMES[0]


def is_law_batch(batch: int) -> bool:
    return batch % 8 == 0 and batch // 8 in _PRIMES


def _scaled(sizes: np.ndarray, traced: int, batch: int) -> np.ndarray:
    """Sizes at another batch: those divisible by the prime in `traced` grow with it, the others do not."""
    prime = traced // 8
    return np.where(sizes % prime == 0, -(-(sizes // prime) * batch // 8), sizes)


def largest_batch(law: Trace, budget: int, optimizer, exact) -> tuple[int, Peak | None]:
    """(largest batch whose peak is at most `budget`, its peak); (0, None) if one sample is too much.

    law: traced with a `law_batch`.  exact(batch) -> Peak: a trace of its own; the law proposes, this one decides, since
    code may choose otherwise for another batch (parts of the batch at a time). Where the law tells the sample's peak
    exactly, it does not choose, and the law itself will do.
    """
    fits = lambda batch: peak_of(law, optimizer, batch).peak <= budget  # noqa: E731
    low, high = 0, 1
    while high < _MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    batch, low, high, best = max(low, 1), 0, None, None  # from here on by exact(): low fits, high does not
    for _ in range(_TRIES):
        found = exact(batch)
        if found.peak <= budget:
            low, best, step = batch, found, 1 if best is None else max(1, batch // 8)
            batch += step
        else:
            high = batch
            fixed = found.parameters + found.optimizer
            batch = max(1, min(batch - 1, int(batch * (budget - fixed) / max(1, found.peak - fixed))))
        if high is not None:
            if high == low + 1:
                break
            batch = batch if low == 0 else (low + high) // 2
    if best is None and high != 1:
        raise MemextError(f"no batch was found within {_TRIES} tries: the memory of this model does not grow "
                          f"evenly with its batch; call plan with a batch near {batch} and look at its peak")
    return low, best
