"""Whether the planner is tracing: there, calls on tensors without memory are to allocate as real calls would."""
from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_planning", "planning"]

_planning: ContextVar[bool] = ContextVar("planning", default=False)


@contextmanager
def planning():
    """What is called inside is traced by the planner."""
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def is_planning() -> bool:
    return _planning.get()
