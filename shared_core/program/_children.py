"""Processes that the program starts: forked ones have the hooks already, spawned ones get them before their first line.

Only processes of `multiprocessing` (and what builds on it, such as torch.multiprocessing) are reached; a program that
starts Python anew by a command line starts it without us.
"""
from __future__ import annotations

import multiprocessing.spawn as spawn
import multiprocessing.util as util
import os
from collections.abc import Callable

__all__ = ["after_fork", "at_end", "is_child", "pass_on"]


class _Begin:
    """In the data that a spawned process is prepared with: to unpickle it is to begin there, too."""

    def __init__(self, options):
        self.options = options

    def __reduce__(self):
        from ._command import begin_child
        return begin_child, (self.options,)


def pass_on(options, forked: Callable[[], None]) -> None:
    """options: picklable, given to `begin_child` in spawned processes.  forked: called first in forked ones."""
    prepare = spawn.get_preparation_data

    def get_preparation_data(name):
        data = prepare(name)
        data["memext"] = _Begin(options)  # multiprocessing.spawn.prepare passes over keys it does not know
        return data

    spawn.get_preparation_data = get_preparation_data
    os.register_at_fork(after_in_child=forked)


def at_end(function: Callable[[], None]) -> None:
    """Calls it when a process of multiprocessing ends by itself; these do not run atexit."""
    util.Finalize(None, function, exitpriority=-1000)


def after_fork(owner, function: Callable[[], None]) -> None:
    """In a forked process: multiprocessing empties its list of finalizers first, and then calls what is registered."""
    util.register_after_fork(owner, lambda _: at_end(function))


def is_child() -> bool:
    """Was this process started by multiprocessing?"""
    import multiprocessing

    return multiprocessing.parent_process() is not None
