"""What has to be known of a network before a sample can leave its batch; found out on three samples and a few steps.

Where each state has its batch dimension: two runs, of three samples and of two. Whether that is all there is: samples 2
and 0 of three, gathered before the last step, give what they give among three. Whether samples are independent: another
sample 2 changes nothing for 0 and 1. Whether steps are: a sequence at once gives what its steps give.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MemextError
from ._exit_state import Dims, dims_between, gathered, leaves
from ._exit_step import Step

__all__ = ["Known", "probe"]

_STEPS = 3
_CLOSE = 1e-3  # of the largest score: other batch sizes round otherwise (1e-6), a spike more changes more than this
_ATTEMPTS = 3  # where a spike flips by rounding, other samples are asked


@dataclass(frozen=True)
class Known:
    """state: batch dimensions of the states handed around.  places: (label, container, key, dims) of those inside."""

    state: Dims
    places: tuple[tuple[str, dict, str, Dims], ...]

    def gather(self, states: tuple, samples: int, keep: Tensor) -> tuple:
        """Leaves the samples `keep` (indices, of `samples`) in all states inside; returns those handed around."""
        made: dict[int, Tensor] = {}
        for label, container, key, dims in self.places:
            if key in container:
                container[key] = gathered(label, container[key], dims, samples, keep, made)
        return gathered("of the step", states, self.state, samples, keep, made)


def probe(step: Step, x_seq: Tensor) -> Known:
    """x_seq: [T, N, *], what the network takes in its first steps; T >= 2.  Inside step.running().

    Raises MemextError: a state that cannot be gathered, samples or steps that depend on each other.
    """
    xs = _samples(x_seq, 0)
    step(xs[0], step.start(xs[0]))  # share() without a sample decides at the first forward pass
    problem = None
    for attempt in range(_ATTEMPTS):
        xs = _samples(x_seq, attempt)
        known, outputs = _dims(step, xs)
        problem = _problem(step, xs, known, outputs)
        if problem is None:
            return known
    raise MemextError(f"early_exit: {problem}")


def _samples(x_seq: Tensor, attempt: int) -> Tensor:
    """[steps, 3, *]: three samples that differ, other ones for each attempt."""
    xs = x_seq[:_STEPS]
    parts = [xs.roll(-3 * attempt, 1)[:, :3]]
    while sum(part.shape[1] for part in parts) < 3:  # fewer samples than that: shifted ones, with the same values
        parts.append(parts[-1].roll(attempt + 1, -1))
    return torch.cat(parts, 1)[:, :3].contiguous()


def _run(step: Step, xs: Tensor, steps: int):
    """(scores of each step, what changed places held after each, states handed around after each)."""
    states = step.start(xs[0])
    before, outputs, held, handed = step.places.signatures(), [], [], []
    for x in xs[:steps]:
        out, states = step(x, states)
        outputs.append(out)
        held.append({(id(p.container), p.key): (p, [(path, t.clone()) for path, t in leaves(p.container[p.key])])
                     for p in step.places.changed(before)})
        handed.append([(path, t.clone()) for path, t in leaves(states)])
    return outputs, held, handed, states


def _dims(step: Step, xs: Tensor) -> tuple[Known, list[Tensor]]:
    outputs, three, handed3, _ = _run(step, xs, len(xs))
    _, two, handed2, _ = _run(step, xs[:, :2], len(xs))
    found: dict[tuple[int, str], tuple] = {}
    for at3, at2 in zip(three, two):
        for key, (place, now) in at3.items():
            dims = dims_between(place.label, now, at2.get(key, (place, []))[1])
            found[key] = place.label, place.container, place.key, _merged(found[key][3] if key in found else {}, dims)
    state: Dims = {}
    for now, then in zip(handed3, handed2):
        state = _merged(state, dims_between("that the step returns", now, then))
    return Known(state, tuple(found.values())), outputs


def _merged(old: Dims, new: Dims) -> Dims:
    """A number at rest becomes a tensor with the first step or later."""
    return {**old, **{path: dim for path, dim in new.items() if dim is not None or path not in old}}


def _problem(step: Step, xs: Tensor, known: Known, outputs: list[Tensor]) -> str | None:
    name = type(step.net).__name__
    other = xs.clone()
    other[:, 2] = xs[:, 0].flip(tuple(range(1, xs.dim() - 1))) if xs.dim() > 2 else xs[:, 0]
    scores, *_ = _run(step, other, len(other))
    if not all(_close(a[:2], b[:2]) for a, b in zip(scores, outputs)):
        again, *_ = _run(step, xs, len(xs))
        if not all(_close(a, b) for a, b in zip(again, outputs)):
            return (f"{name} gave different scores for the same input: it draws random numbers (pass the encoder as "
                    "encode=, outside of the network), or carries something from step to step that is no attribute, "
                    "buffer or memory of its modules (a module in a plain list?)")
        return (f"what {name} returns for a sample depends on the other samples in the batch, so none can leave (a "
                "norm over the batch? a layer that takes the batch for time?)")
    *_, states = _run(step, xs, len(xs) - 1)
    keep = torch.tensor([2, 0], device=xs.device)
    out, _ = step(xs[-1][keep], known.gather(states, 3, keep))
    if not _close(out, outputs[-1][keep]):
        return (f"{name} carries something from step to step that is no attribute, buffer or memory of its modules (a "
                "module in a plain list? a variable of the function?), so it cannot be gathered when samples leave. "
                f"Found and gathered: {', '.join(place[0] for place in known.places) or 'nothing'}")
    return _mixed_steps(step, xs, outputs) if step.multi_step and step.state is None else None


def _mixed_steps(step: Step, xs: Tensor, outputs: list[Tensor]) -> str | None:
    """The network shows all steps to a layer at once: is the sequence no more than its steps?"""
    if step.attribute is not None and len(xs) > 1 and not torch.equal(xs[0], xs[1]):
        return None
    step.start(xs[0])
    try:
        whole, steps = step.whole(xs), torch.stack(outputs)
    except Exception as error:
        return (f"{type(step.net).__name__} takes single steps, and raised {type(error).__name__} on a sequence of "
                f"{len(xs)}: {error}")
    ok = isinstance(whole, Tensor) and any(whole.shape == wanted.shape and _close(whole.to(wanted), wanted)
                                           for wanted in (steps, steps.mean(0), steps.sum(0)))
    if ok:
        return None
    return (f"{type(step.net).__name__} on a sequence of {len(xs)} steps is neither the steps one by one nor their "
            f"mean or sum, so it cannot be stopped between them{step.on_sequences()}")


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=_CLOSE * max(float(b.abs().max()), 1e-30), equal_nan=True)
