"""Training memory of a T-RevSNN of any size, counted without the memory."""
from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from shared_core.memory import measure


def counted(build: Callable[[], nn.Module], batch: int, size: int) -> tuple[int, int]:
    """(peak, kept for backward) in bytes of one training step on images of size x size, in float16 under autocast."""
    with FakeTensorMode():
        net = build()
        x, labels = torch.randn(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)

        def step() -> None:
            with torch.autocast("cpu", torch.float16):
                loss = cross_entropy(net(x), labels)
            loss.backward()

        found = measure(step, model=net, timeline=False)
    gc.collect()
    return found.peak_bytes, found.saved_bytes
