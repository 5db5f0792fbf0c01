"""snntorch.backprop's training epochs, with less kept for the backward pass, and online learning beside them.

    loss = backprop.BPTT(net, loader, optimizer, criterion, time_var=True)                  # as snntorch.backprop.BPTT
    loss = backprop.SLTT(net, loader, optimizer, criterion, time_var=True)                  # memory independent of T

Each call is one epoch and returns its mean loss. Neurons need init_hidden=True, the last one output=True, and the
criterion is one of snntorch.functional, as there. snnTorch 1.0.0's own TBPTT fails for time-varying input with a number
K, and for two classes of neurons; these do not.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from shared_core.errors import MemextError
from shared_core.temporal import online_train_step, unroll

from ._temporal import HOST

__all__ = ["BPTT", "SLTT", "SLTTK", "TBPTT"]

_ON_MEMBRANE = ("mse_membrane_loss", "ce_max_membrane_loss")  # the rest of snntorch.functional's losses take spikes


def BPTT(net: nn.Module, dataloader: Iterable, optimizer, criterion: Callable, num_steps: int | bool = False,
         time_var: bool = True, time_first: bool = True, regularization: Callable | bool = False, device="cpu", *,
         method: str = "reverse", **options) -> Tensor:
    """Backpropagation through the whole sequence, one update a batch. Arguments: snntorch.backprop.BPTT's.

    method, options: see shared_core.temporal.unroll ("store" is snnTorch's own way).
    Raises MemextError (a ValueError as well): num_steps given with time_var, or missing without; others of unroll.
    """
    return TBPTT(net, dataloader, optimizer, criterion, num_steps, time_var, time_first, regularization, device,
                 K=False, method=method, **options)


def TBPTT(net: nn.Module, dataloader: Iterable, optimizer, criterion: Callable, num_steps: int | bool = False,
          time_var: bool = True, time_first: bool = True, regularization: Callable | bool = False, device="cpu",
          K: int | bool = 1, *, method: str = "reverse", **options) -> Tensor:
    """One update every K steps; the state is carried over, its gradient is not. Arguments: snntorch.backprop.TBPTT's.

    K: steps per update; False: all.
    """
    _check("TBPTT", num_steps, time_var, time_first, K)
    total, batches = 0.0, 0
    for x, targets, count, static in _batches(net, dataloader, num_steps, time_var, time_first, device):
        width = K or count
        for start in range(0, count, width):
            steps = min(width, count - start)
            out = (unroll(net, x, method, num_steps=steps, **options) if static
                   else unroll(net, x[start:start + steps], method, **options))
            loss = _loss(criterion, regularization, out, targets, slice(start, start + steps))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # snnTorch's mean: each whole part counts K / T; a shorter last one 1 / its steps.
            total = total + loss.detach() / (count / width if steps == width else steps)
        batches += 1
    return _mean(total, batches)


def SLTT(net: nn.Module, dataloader: Iterable, optimizer, criterion: Callable, num_steps: int | bool = False,
         time_var: bool = True, time_first: bool = True, regularization: Callable | bool = False, device="cpu", *,
         K: int | None = None) -> Tensor:
    """Spatial learning through time: the gradient without the paths from step to step, one update a batch.

    The criterion is applied to each step's output as to a sequence of one step; the mean over T is the loss (Eq. 14 of
    Meng et al. 2023). A criterion that looks at counts or latencies over the sequence has another meaning then.
    K: so many steps, drawn anew for each batch, get a backward (SLTT-K, Algorithm 1); None: all.
    """
    _check("SLTT", num_steps, time_var, time_first, K or 1)
    total, batches = 0.0, 0
    for x, targets, count, static in _batches(net, dataloader, num_steps, time_var, time_first, device):
        def of_step(out, t, targets=targets):
            return _loss(criterion, regularization, tuple(o.unsqueeze(0) for o in out), targets, slice(t, t + 1))

        optimizer.zero_grad()
        _, loss = online_train_step(net, x.expand(count, *x.shape) if static else x, of_step, k=K,
                                    outputs=False)
        optimizer.step()
        total, batches = total + loss, batches + 1
    return _mean(total, batches)


def SLTTK(net: nn.Module, dataloader: Iterable, optimizer, criterion: Callable, num_steps: int | bool = False,
          time_var: bool = True, time_first: bool = True, regularization: Callable | bool = False, device="cpu",
          K: int = 1) -> Tensor:
    """SLTT in which K random steps of each sequence get a backward. The loss is still divided by T: the gradient is K/T
    of SLTT's in expectation, as in the authors' code."""
    return SLTT(net, dataloader, optimizer, criterion, num_steps, time_var, time_first, regularization, device, K=K)


# ---- shared ----

def _check(name: str, num_steps, time_var, time_first, K) -> None:
    problem = None
    if num_steps and time_var:
        problem = f"num_steps={num_steps} and time_var=True; time-varying input says itself how many steps it has"
    elif not num_steps and not time_var:
        problem = "time_var=False without num_steps; pass the number of steps"
    elif not time_var and not time_first:
        problem = "time_first=False and time_var=False; input of a single step has no time dimension"
    elif K is not False and (not isinstance(K, int) or isinstance(K, bool) or K < 1):
        problem = f"K is {K!r}; a number of steps, at least 1, is needed"
    elif num_steps and K and num_steps < K:
        problem = f"K={K} is more than num_steps={num_steps}"
    if problem:
        raise MemextError(f"snntorch_memext.backprop.{name}: {problem}")


def _batches(net, dataloader, num_steps, time_var, time_first, device) -> Iterator[tuple[Tensor, Tensor, int, bool]]:
    """(input, targets, T, whether the input is every step's) of each batch, with all states at rest."""
    net.to(device)
    for data, targets in dataloader:
        net.train()
        data, targets = data.to(device), targets.to(device)
        if time_var and not time_first:
            data = data.transpose(0, 1)
        _reset(net)
        yield data, targets, data.shape[0] if time_var else num_steps, not time_var


def _reset(net: nn.Module) -> None:
    """All neurons of this net, at any depth, and no others (snntorch.utils.reset: children only, of all nets)."""
    for module in net.modules():
        for name in HOST.states(module):
            setattr(module, name, torch.zeros_like(getattr(module, name)).detach())


def _loss(criterion, regularization, out, targets: Tensor, at: slice) -> Tensor:
    if not isinstance(out, tuple):
        raise MemextError("snntorch_memext.backprop: the net returns spikes only; snntorch.functional's losses need "
                          "its last neuron to return its membrane, too: output=True")
    if getattr(criterion, "time_var_targets", False):
        targets = targets[at]
    loss = criterion(out[-1] if getattr(criterion, "__name__", "") in _ON_MEMBRANE else out[0], targets)
    return loss + regularization(out[0]) if regularization else loss


def _mean(total, batches: int) -> Tensor:
    if batches == 0:
        raise MemextError("snntorch_memext.backprop: the dataloader gave no batch")
    return total / batches
