"""Training with the gradient of one step at a time, in memory that does not grow with the number of steps.

    L = 1/T sum_t loss(out[t]);   the gradient of L without the paths from step to step
Source: SLTT and SLTT-K (Meng et al. 2023), Eq. 12 to 14 and Algorithm 1. With K of the T steps the loss is still
divided by T, as in the authors' code, so the expectation of the gradient is K/T of SLTT's.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import MemextError
from ._program import Program

__all__ = ["online_train_step"]


def online_train_step(net: nn.Module, x_seq: Tensor, loss_fn: Callable[[object, int], Tensor], k: int | None = None,
                      steps: Sequence[int] | None = None, outputs: bool = True) -> tuple[object, Tensor]:
    """One training step of SLTT (k=None) or SLTT-K: adds to `.grad`; the optimizer is the caller's.

    net: called once a step on x_seq[t]; its modules hold their states, and start from those they have.
    x_seq: [T, *].  loss_fn(output, t): the loss of one step, a scalar; divided by T here.
    k: number of steps, drawn anew from Torch's random numbers, that get a backward.  steps: or these.
    Steps not chosen still move the states and the statistics of batch norm on.
    outputs: False: do not collect the outputs, which are the one thing that grows with T; None is returned for them.
    Returns (outputs of every step, detached, [T, *]; mean loss over all steps that got a backward, detached).
    Raises MemextError: k or steps outside of the sequence, or both; loss_fn returns no scalar.
    """
    where = "online_train_step"
    if not isinstance(x_seq, Tensor) or x_seq.dim() == 0 or x_seq.shape[0] == 0:
        got = tuple(x_seq.shape) if isinstance(x_seq, Tensor) else type(x_seq).__name__
        raise MemextError(f"{where}: x_seq is {got}; a tensor [T, *] with T >= 1 is needed, time first")
    chosen = _chosen(where, x_seq.shape[0], k, steps)
    program = Program(net)
    rows, losses, spec = [], [], None
    for t, x in enumerate(x_seq):
        for cell in program.cells:
            value = cell.get()
            if isinstance(value, Tensor):
                cell.set(value.detach())
        with torch.set_grad_enabled(t in chosen):
            out = net(x)
            if t in chosen:
                loss = loss_fn(out, t)
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    raise MemextError(f"{where}: loss_fn returned {loss!r:.60} at step {t}; a scalar tensor is needed")
                (loss / x_seq.shape[0]).backward()
                losses.append(loss.detach())
        if outputs:
            flat, spec = tree_flatten(out)
            rows.append([o.detach() for o in flat])
    for cell in program.cells:
        value = cell.get()
        if isinstance(value, Tensor):
            cell.set(value.detach())
    found = tree_unflatten([torch.stack(parts) for parts in zip(*rows)], spec) if outputs else None
    return found, torch.stack(losses).mean()


def _chosen(where: str, count: int, k: int | None, steps: Sequence[int] | None) -> frozenset[int]:
    if k is not None and steps is not None:
        raise MemextError(f"{where}: k={k} and steps={steps!r}; give one of them")
    if steps is not None:
        if not steps or not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < count for t in steps):
            raise MemextError(f"{where}: steps is {steps!r}; steps from 0 to {count - 1} are allowed")
        return frozenset(steps)
    if k is None:
        return frozenset(range(count))
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= count:
        raise MemextError(f"{where}: k is {k!r}; a number of steps from 1 to {count} is needed")
    return frozenset(torch.randperm(count)[:k].tolist())
