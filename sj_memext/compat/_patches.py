"""Changes to somebody else's objects that can all be taken back, and notes that are given once."""
from __future__ import annotations

import warnings

__all__ = ["PATCHES", "Patches", "say"]

_MISSING = object()
_said: set[str] = set()


class Patches:
    """Attributes set on classes and modules, in order, with what stood there before."""

    def __init__(self):
        self._made: list[tuple[object, str, object, object]] = []

    def set(self, owner, name: str, value) -> None:
        """Sets owner.name. owner: a class or a module."""
        self._made.append((owner, name, vars(owner).get(name, _MISSING), value))
        setattr(owner, name, value)

    def add(self, owner, name: str, value) -> None:
        """As set, but only where `owner` itself does not have the name: what is real is never covered."""
        if name not in vars(owner):
            self.set(owner, name, value)

    def undo(self) -> None:
        """Takes everything back, newest first; what somebody replaced meanwhile stays theirs."""
        for owner, name, before, ours in reversed(self._made):
            if vars(owner).get(name) is not ours:
                continue
            if before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._made.clear()


PATCHES = Patches()


def say(key: str, text: str) -> None:
    """A RuntimeWarning, once per process and key."""
    if key not in _said:
        _said.add(key)
        warnings.warn(f"sj_memext.compat: {text}", RuntimeWarning, stacklevel=4)
