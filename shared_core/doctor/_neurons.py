"""Every neuron as it was seen: its T and N, how time is stepped, and what retrofit would make of it."""
from __future__ import annotations

from collections import Counter

from ..retrofit import ALREADY, classify
from ._explain import Look, Neuron
from ._watch import Seen

__all__ = ["neurons"]


def neurons(seen: Look) -> tuple[list[Neuron], int | None, int | None]:
    """(every neuron, T, N): T and N as most of them saw them."""
    _alike(seen)
    modules = _outermost([s for s in seen.watch.seen.values() if s.is_neuron])
    single = Counter(s.calls for s in modules if s.host is not None and s.calls and not _takes_sequences(s))
    most = max(single.values(), default=0)
    looped = min((calls for calls, n in single.items() if n == most), default=1)  # of ties, the smallest
    found = [_neuron(s, looped, seen) for s in modules]
    return found, _usual(n.T for n in found), _usual(n.N for n in found)


def _alike(seen: Look) -> None:
    """A class that fired somewhere is a neuron where it is silent, too."""
    known = {type(s.module): s for s in seen.watch.seen.values() if s.by_hand}
    for s in seen.watch.seen.values():
        like = known.get(type(s.module))
        if like is not None and not s.is_neuron and s.calls:
            s.by_hand, s.loop, s.rates = like.by_hand, like.loop, s.calls


def _outermost(modules: list[Seen]) -> list[Seen]:
    """Of neurons inside neurons, which authors write of a membrane and a spike function, the outer one."""
    names = {s.name for s in modules if s.by_hand}
    return [s for s in modules if not any(s.name != n and s.name.startswith(f"{n}.") for n in names)]


def _takes_sequences(s: Seen) -> bool:
    return s.step_mode == "m"


def _neuron(s: Seen, looped: int, seen: Look) -> Neuron:
    shape = s.shapes[0] if s.shapes else ()
    per_step, T, N = 1, None, None
    if s.host is None:
        T = s.loop or None if s.loop > 1 else (s.calls if s.calls > 1 else None)
        loop = s.loop > 1 or s.calls > 1
        N = shape[1] if s.loop > 1 and len(shape) > 1 and shape[0] == s.loop else (shape[0] if len(shape) else None)
        ours, why = None, f"it is written by hand ({s.by_hand}); no method reaches into it"
    else:
        if _takes_sequences(s):
            T, N = (shape[0], shape[1] if len(shape) > 1 else None) if len(shape) else (None, None)
            per_step = max(1, s.calls // seen.steps)
            loop = False
        else:
            N = shape[0] if len(shape) else None
            per_step = s.calls // looped if looped and s.calls % looped == 0 and s.calls else 1
            T = s.calls // max(1, per_step) or None
            loop = (T or 0) > 1
        cls, why = classify(s.host.framework, s.module)
        ours = cls.__name__ if cls is not None else None
        if why == ALREADY:
            ours, why = type(s.module).__name__, None
    framework = "by hand" if s.host is None else s.host.framework.name
    return Neuron(s.name, s.kind, framework, s.step_mode, T, N, s.calls, per_step, loop, s.rate, ours, why)


def _usual(values) -> int | None:
    count = Counter(v for v in values if v is not None)
    return count.most_common(1)[0][0] if count else None
