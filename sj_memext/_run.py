"""What `memext run` does to SpikingJelly itself: its own loop over time goes through ours."""
from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import torch

from shared_core.errors import MemextError
from shared_core.program._loops import as_before_if_refused, native_now

from . import functional as ours
from ._host import functional

__all__ = ["begin", "replace_loops"]


def begin(say: Callable[[str], None]) -> None:
    """Nothing: SpikingJelly's functional.reset_net resets what it is given."""


def replace_loops(method: str, say: Callable[[str], None], running: ContextVar, compare: Callable) -> None:
    """functional.multi_step_forward(x_seq, net), also as containers of the framework call it, by unroll's `method`."""
    theirs = functional.multi_step_forward
    what = "spikingjelly.activation_based.functional.multi_step_forward goes through time in little memory"

    def multi_step_forward(x_seq, single_step_module):
        if native_now.get() or not torch.is_grad_enabled() or not isinstance(x_seq, torch.Tensor) or x_seq.shape[0] < 2:
            return theirs(x_seq, single_step_module)
        token = running.set(what)
        try:
            with as_before_if_refused(partial(theirs, x_seq, single_step_module)):
                out = ours.multi_step_forward(x_seq, single_step_module, method, final_state="attached")
            return out
        except MemextError as problem:
            say(f"functional.multi_step_forward runs as it is: {problem}")
            return theirs(x_seq, single_step_module)
        finally:
            running.reset(token)

    functional.multi_step_forward = multi_step_forward
