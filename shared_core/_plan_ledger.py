"""What would have been allocated when, if tensors had memory: a ledger, and a mode under which they have none.

A storage's Python object lives as long as the C++ storage does, so a weak reference to it fires exactly when a real one
would be released, whoever held it last (as in _memory_tracker.py, which does the same for real steps and in detail).
"""
from __future__ import annotations

import contextlib
import weakref

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ._memory_graph import tensors_in

__all__ = ["BASE", "END", "Ledger", "default_device", "watch"]

BASE = -1  # "born" of what was there before the step
END = np.iinfo(np.int64).max  # "died" of what is there after it


class _Ref(weakref.ref):
    __slots__ = ("key", "line")


class Ledger:
    """Bytes, birth and death of every storage, in events (counted births and deaths)."""

    def __init__(self):
        self.events, self.depth, self.before = 0, 0, True
        self.nbytes: list[int] = []
        self.born: list[int] = []
        self.died: list[int] = []
        self._open: dict[int, _Ref] = {}

    def note(self, out) -> None:
        """What an operator returned; storages not seen before are born."""
        if isinstance(out, Tensor):
            self._note(out)
        elif out is not None:
            for t in tensors_in(out):
                self._note(t)

    def _note(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._open:
            return
        ref = _Ref(storage, self._close)
        ref.key, ref.line = key, self.add(storage.nbytes())
        self._open[key] = ref

    def _close(self, ref: _Ref) -> None:
        if self._open.get(ref.key) is ref:
            del self._open[ref.key]
            self.free(ref.line)

    def add(self, nbytes: int) -> int:
        """A line for bytes born now; its number."""
        self.events += 1
        self.nbytes.append(nbytes)
        self.born.append(BASE if self.before else self.events)
        self.died.append(END)
        return len(self.nbytes) - 1

    def free(self, line: int) -> None:
        self.events += 1
        self.died[line] = self.events

    def release(self, t: Tensor) -> None:
        """Takes t for released now, although something still refers to it."""
        ref = self._open.pop(t.untyped_storage()._cdata, None)
        if ref is not None:
            self.free(ref.line)

    def line_of(self, t: Tensor) -> int | None:
        ref = self._open.get(t.untyped_storage()._cdata)
        return None if ref is None else ref.line

    def events_of(self, wanted) -> list[tuple[int, int, bool]]:
        """(event, line, is it a birth?) in order, of the lines born during the step that are wanted(line, bytes)."""
        found = []
        for line, (nbytes, born, died) in enumerate(zip(self.nbytes, self.born, self.died)):
            if born != BASE and wanted(line, nbytes):
                found.append((born, line, True))
                if died != END:
                    found.append((died, line, False))
        return sorted(found)

    def close(self) -> None:
        """Stops following what is still alive."""
        self._open.clear()


class _Watch:
    """A mode that passes every operator on and notes what comes out. Operators inside operators are theirs."""

    ledger: Ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        ledger = self.ledger
        ledger.depth += 1
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            ledger.depth -= 1
        if not ledger.depth:
            ledger.note(out)
        return out


class _FakeWatch(_Watch, FakeTensorMode):
    pass


class _Pass(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _MetaWatch(_Watch, _Pass):
    @classmethod
    def _should_skip_dynamo(cls):
        return False  # otherwise Torch imports its compiler (seconds) and wraps every call


def watch(ledger: Ledger, device: str):
    """A mode for `with`: under it tensors of `device`, "cpu" or "meta", need no memory and are noted."""
    mode = _FakeWatch(allow_non_fake_inputs=True) if device == "cpu" else _MetaWatch()
    mode.ledger = ledger
    return mode


def default_device(device: str):
    """What a model makes without naming a device belongs to the others."""
    return torch.device(device) if device != "cpu" else contextlib.nullcontext()
