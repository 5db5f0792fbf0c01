"""What a reversible neuron must know of its values after the fact: the greatest |z| and |V|, read once per backward.

Reading a number from a GPU waits for it. So every neuron leaves its two numbers on the device, and all of one backward
pass are read together when it ends.
"""
from __future__ import annotations

import threading
import warnings

import torch
from torch import Tensor
from torch.autograd import Variable

from ..errors import MemextError
from ._equations import RANGE

__all__ = ["GROWN", "check", "check_later"]

GROWN = 1e3  # thresholds; a warning beyond: Y is real-valued, and 1 - Y can amplify V from step to step
_AT_ONCE = 64  # backward passes under way at the same time, nested ones included
_lock = threading.Lock()
_warned: dict[str, float] = {}  # by name: the potential that was warned of; a tenfold one is worth another line
_pending: dict[int, list[tuple[str, float, Tensor]]] = {}


def check_later(name: str, v_th: float, largest: Tensor) -> None:
    """Within a backward pass: `largest` (float32 [2]: |z|, |V|) is checked when the pass ends, and an error raised."""
    task = torch._C._current_graph_task_id()
    if task == -1:  # somebody calls the node by hand
        return check(name, v_th, *largest.tolist())
    with _lock:
        first = task not in _pending
        _pending.setdefault(task, []).append((name, v_th, largest))
        while len(_pending) > _AT_ONCE:  # backward passes that failed never came to their end
            del _pending[next(iter(_pending))]
    if first:
        Variable._execution_engine.queue_callback(lambda: _read(task))


def _read(task: int) -> None:
    with _lock:
        waiting = _pending.pop(task, [])
    by_device: dict[torch.device, list[int]] = {}
    for i, (_, _, largest) in enumerate(waiting):
        by_device.setdefault(largest.device, []).append(i)
    for device in by_device.values():
        values = torch.stack([waiting[i][2] for i in device]).tolist()
        for i, (z, v) in zip(device, values):
            check(*waiting[i][:2], z, v)


def check(name: str, v_th: float, z: float, v: float) -> None:
    """Raises MemextError if the output could not carry the input exactly; warns if potentials grow."""
    if not z < RANGE:
        raise MemextError(f"{name}: its scaled input reached |beta x| = {z:.4g}, but only below {RANGE:g} is the "
                          "output exact in float32; the gradients of this backward pass are wrong: do not use them. "
                          "Put a norm before the neuron, lower the learning rate, or choose a smaller beta")
    if not v < max(GROWN * max(abs(v_th), 1.0), 10 * _warned.get(name, 0.0)):
        _warned[name] = v
        warnings.warn(f"{name}: membrane potentials reached {v:.3g}: where the output is far from [0, 1], 1 - Y "
                      "amplifies them from step to step. The inverse stays exact, gradients may explode; put a norm "
                      "before the neuron, or use fewer steps or a smaller alpha", RuntimeWarning, stacklevel=2)
