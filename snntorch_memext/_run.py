"""What `memext run` does to snnTorch itself: resets that keep to their net, neurons that can be pickled, and its epochs
(snntorch.backprop) through ours."""
from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar

import snntorch
import torch
from snntorch import SpikingNeuron
from torch.utils.data import DataLoader

from shared_core.errors import MemextError
from shared_core.program._imports import when_imported
from shared_core.program._loops import native_now

from . import _reset, backprop
from ._host import _recipe

__all__ = ["begin", "replace_loops"]


def begin(say: Callable[[str], None]) -> None:
    """Scoped resets; and neurons that are not ours can be pickled as ours can (for a spawned process)."""
    _reset.install()
    if "__getstate__" not in vars(SpikingNeuron):
        SpikingNeuron.__getstate__ = _getstate


def _getstate(self) -> dict:
    state = dict(self.__dict__)
    if _recipe(state.get("spike_grad")) is not None:
        state["spike_grad"] = _Closure(state["spike_grad"])
    return state


class _Closure:
    """One of snnTorch's surrogate closures on its way: pickled by name and arguments, and itself again afterwards."""

    def __init__(self, closure):
        self.closure = closure

    def __deepcopy__(self, memo):
        return self.closure

    def __reduce__(self):
        name, arguments = _recipe(self.closure)
        return _made, (name, arguments)


def _made(name: str, arguments: dict):
    return getattr(snntorch.surrogate, name)(**arguments)


def replace_loops(method: str, say: Callable[[str], None], running: ContextVar, compare: Callable) -> None:
    """snntorch.backprop.BPTT and TBPTT, once the program imports them: the same updates, one step's graph at a time; or
    SLTT, without the gradient through time."""
    def replace():
        host = sys.modules["snntorch.backprop"]
        for name in ("BPTT", "TBPTT"):
            setattr(host, name, _epoch(getattr(host, name), method, say, running, compare))

    when_imported("snntorch.backprop", replace)


def _epoch(theirs: Callable, method: str, say: Callable[[str], None], running: ContextVar,
           compare: Callable) -> Callable:
    name = theirs.__name__
    online = method == "online" and name == "BPTT"
    ours = backprop.SLTT if online else getattr(backprop, name)
    options = {} if online else {"method": method}

    @functools.wraps(theirs)
    def epoch(*args, **kwargs):
        if native_now.get():
            return theirs(*args, **kwargs)
        what = f"snntorch.backprop.{name} runs as snntorch_memext.backprop.{ours.__name__}"
        token = running.set(what)
        try:
            loss = ours(*args, **kwargs, **options)
        except MemextError as problem:
            say(f"snntorch.backprop.{name} runs as it is: {problem}")
            return theirs(*args, **kwargs)
        finally:
            running.reset(token)
        _compared(theirs, functools.partial(ours, **options), compare, args, kwargs)
        return loss

    return epoch


def _compared(theirs: Callable, ours: Callable, compare: Callable, args: tuple, kwargs: dict) -> None:
    """One batch by either, on copies; where the loader can be asked for a batch more."""
    given = inspect.signature(theirs).bind(*args, **kwargs).arguments
    loader = given["dataloader"]
    if not isinstance(loader, DataLoader | list | tuple):
        return
    batch: list = []

    def step_of(epoch: Callable) -> Callable:
        def step(net):
            if not batch:
                batch.append(next(iter(loader)))
            still = torch.optim.SGD(net.parameters(), lr=0.0)
            return [[epoch(**{**given, "net": net, "dataloader": batch, "optimizer": still}).detach()]]
        return step

    compare(given["net"], step_of(theirs), step_of(ours))
