"""No kernels: outputs of the right shape, dtype and layout, with nothing in them, for fake and meta tensors.

Allocates what the kernels' backends allocate, in the same order, so that a planner that watches it sees their memory.
"""
from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import fused


def unavailable() -> str | None:
    return None


def forward(spec, x: Tensor, state, params, *, keep: bool, traces: bool = False):
    with _mode(x):
        return fused.forward(spec, x, state, params, keep=keep, traces=traces, **_NO_KERNEL)


def backward(spec, x: Tensor, *args, **rebuilt):
    with _mode(x):
        return fused.backward(spec, x, *args, sums_in_kernel=True, **_NO_KERNEL, **rebuilt)


def single_step_backward(spec, dtype, device, layout, traces, *args):
    with _mode(traces[0]):
        return fused.single_step_backward(spec, dtype, device, layout, traces, *args, **_NO_KERNEL)


_NO_KERNEL = dict(threads=1, run=lambda call, direction: None, address=lambda t: 0)


def _mode(t: Tensor):
    """New tensors are as fake as t."""
    return t.fake_mode if isinstance(t, FakeTensor) else nullcontext()
