"""Arguments of the old releases: checked with a sentence instead of a bare AssertionError, and `backend=`."""
from __future__ import annotations

import inspect

from shared_core.errors import MemextError

from ._patches import say

__all__ = ["BACKENDS", "check_backend", "check_floats", "explain_assertion"]

BACKENDS = ("torch", "cupy", "lava", "triton", "inductor")
_FLOATS = ("tau", "init_tau", "v_threshold", "v_reset", "v_rest", "w_rest", "tau_w", "a", "b")


def check_backend(backend, where: str = "backend") -> str:
    """A backend of an old release: accepted, and without effect. Returns it.

    Raises MemextError: not one of theirs.
    """
    if backend not in BACKENDS:
        raise MemextError(f"{where}: backend is {backend!r}; allowed: {', '.join(map(repr, BACKENDS))}. It has no "
                          "effect on SpikingJelly 2: the device of the input chooses the kernel")
    if backend == "lava":
        say("lava", f"{where}: backend='lava' rounded currents and potentials to Loihi's fixed point; here they are in "
                    "the precision of the input, so the numbers differ. Convert the trained net with lava_exchange")
    return backend


def check_floats(where: str, **values) -> None:
    """Raises MemextError for what the frameworks answer with a bare AssertionError: an int, a bool or a string where a
    float is needed, a time constant of 1 or less. None and tensors pass (the framework has its own word on them)."""
    for name, value in values.items():
        if name not in _FLOATS or value is None or (isinstance(value, float) and not name.endswith("tau")):
            continue
        if not isinstance(value, float):
            if not isinstance(value, bool | int | str):
                continue
            fix = f"write {name}={float(value)}" if isinstance(value, int) else "pass a float"
            raise MemextError(f"{where}: {name} is {value!r} ({type(value).__name__}); a float is needed, by every "
                              f"release of SpikingJelly since 0.0.0.0.12; {fix}")
        if value <= 1.0:
            raise MemextError(f"{where}: {name} is {value}; a time constant above 1.0 is needed (in time steps)")


def explain_assertion(where: str, function, args: tuple, kwargs: dict, problem: AssertionError) -> MemextError:
    """What to raise for an AssertionError of `function(*args, **kwargs)`, a constructor bound to its object."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
        check_floats(where, **bound)
    except TypeError:
        bound = {}
    except MemextError as better:
        return better
    if not isinstance(bound.get("detach_reset", False), bool):
        return MemextError(f"{where}: detach_reset is {bound['detach_reset']!r}; True or False is needed")
    given = ", ".join(f"{name}={value!r:.40}" for name, value in bound.items())
    why = f" ({problem})" if str(problem) else ""
    return MemextError(f"{where}: SpikingJelly refuses these arguments{why}: {given}")
