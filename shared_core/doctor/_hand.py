"""Neurons that are written by hand, and belong to no framework: found by what they emit, or by what they carry."""
from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

__all__ = ["emits_spikes", "is_plain", "own_tensors", "steps_inside"]

_MOST = 8  # the largest number of spikes at once that a hand-written neuron is expected to emit
_NODES = 20000


def is_plain(module: nn.Module) -> bool:
    """May this be a neuron of its author's own? Not Torch's, not a framework's, and without weights of any size."""
    home = type(module).__module__.partition(".")[0]
    if home in ("torch", "torchvision", "spikingjelly", "snntorch", "sj_memext", "snntorch_memext", "shared_core"):
        return False
    return all(p.dim() <= 1 for p in module.parameters()) and not any(
        isinstance(m, nn.modules.batchnorm._NormBase) for m in module.modules())


def emits_spikes(x, out) -> bool:
    """Real values in, small whole numbers of the same shape out, not all of them 0."""
    if not isinstance(x, Tensor) or not isinstance(out, Tensor) or x.shape != out.shape or not out.numel():
        return False
    return x.is_floating_point() and out.is_floating_point() and _whole(out) and not _whole(x)


def _whole(x: Tensor) -> bool:
    x = x.detach()
    low, high = x.aminmax()
    return 0 <= low.item() and 0 < high.item() <= _MOST and bool((x == x.round()).all())


def own_tensors(module: nn.Module) -> dict[str, int]:
    """Tensors that this module holds as plain attributes: name -> which tensor it is."""
    return {name: id(value) for name, value in vars(module).items() if isinstance(value, Tensor)}


def steps_inside(x: Tensor, out: Tensor) -> int:
    """How often the same custom autograd function stands in the graph between a module's input and its output: the
    number of steps of a loop over time in its forward; 0 if there is none."""
    if out.grad_fn is None:
        return 0
    stop, seen, count = x.grad_fn, set(), Counter()
    waiting = [out.grad_fn]
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if node is None or node is stop or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            count[type(node).__name__] += 1
        waiting += [after for after, _ in node.next_functions]
    return max(count.values(), default=0)
