"""spikingjelly.activation_based as code of 0.0.0.0.13 and 0.0.0.0.14 calls it: `backend=` in every neuron.

There the arguments ended in (..., step_mode, backend, store_v_seq); 2.0.0 has no backend. A string in the place where
store_v_seq stands now is a backend, so calls in either order are understood.
"""
from __future__ import annotations

import functools
import inspect

from sj_memext._host import base, neuron

from ._arguments import check_backend, explain_assertion
from ._patches import PATCHES, say

__all__ = ["install"]


def install() -> None:
    for cls in [c for c in vars(neuron).values() if isinstance(c, type) and issubclass(c, neuron.BaseNode)]:
        if cls.__module__.startswith("spikingjelly.") and "__init__" in vars(cls):
            PATCHES.set(cls, "__init__", _with_backend(vars(cls)["__init__"]))
    PATCHES.add(base.MemoryModule, "backend", _BACKEND)
    PATCHES.add(base.MemoryModule, "supported_backends", property(lambda self: ("torch", "cupy")))
    PATCHES.set(neuron.BaseNode, "materialize_states", _with_shape_check(neuron.BaseNode.materialize_states))
    PATCHES.add(neuron, "check_backend", check_backend)


def _with_backend(original):
    names = list(inspect.signature(original).parameters)[1:]
    place = names.index("store_v_seq") if "store_v_seq" in names else None

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        backend = kwargs.pop("backend", None)
        if place is not None and len(args) > place and isinstance(args[place], str):
            backend, args = args[place], (*args[:place], *args[place + 1:])
        where = type(self).__name__
        if backend is not None:
            check_backend(backend, where)
        try:
            original(self, *args, **kwargs)
        except AssertionError as problem:
            raise explain_assertion(where, functools.partial(original, self), args, kwargs, problem) from problem
        if backend is not None:
            self.__dict__["_backend"] = backend

    __init__.__dict__.pop("_memext_undo", None)  # wraps() copies it, and substitute would take this wrapper for its own
    return __init__


def _get(self) -> str:
    return self.__dict__.get("_backend", "torch")


def _set(self, value: str) -> None:
    self.__dict__["_backend"] = check_backend(value, type(self).__name__)


_BACKEND = property(_get, _set, doc="Kept for code that asks; it has no effect on SpikingJelly 2.")


def _with_shape_check(original):
    @functools.wraps(original)
    def materialize_states(self, inputs, states, step_mode):
        before = getattr(states[0], "shape", None)
        after = original(self, inputs, states, step_mode)
        if before is not None and before != after[0].shape:
            say("shape", f"{type(self).__name__}: the input's shape is not that of the state, {list(before)}, and "
                         "SpikingJelly 2 starts from rest; 0.0.0.0.14 raised an error here, or broadcast. Call "
                         "functional.reset_net(net) between batches of different size")
        return after

    return materialize_states
