"""Installed packages that add to this one: finding their entry points, loading them, and blaming them by name."""
from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from functools import lru_cache

__all__ = ["Later", "Reported", "distribution", "key_of", "load", "owner_of", "points", "resolve", "split", "warn",
           "why_missing"]


class Later(Exception):
    """A module that is needed is only half imported; the entry is tried again at the next request."""


def points(group: str) -> list[importlib.metadata.EntryPoint]:
    """Ours first, then by name of the distribution: who is refused does not depend on the search path."""
    return list(_points(group, tuple((path, _changed(path)) for path in sys.path)))


def _changed(path: str) -> float | None:
    try:
        return os.stat(path or ".").st_mtime
    except OSError:
        return None


@lru_cache(maxsize=16)
def _points(group: str, path: tuple) -> list[importlib.metadata.EntryPoint]:
    """A search takes tens of milliseconds, and every call of temporal.unroll asks. The folders on the path change when
    something is installed."""
    found = importlib.metadata.entry_points(group=group)
    return sorted(found, key=lambda point: (distribution(point) != "memext", distribution(point), point.name))


def split(point) -> tuple[str, str]:
    """(framework, neuron) from an entry point's name."""
    framework, _, name = point.name.partition(".")
    return framework, name or point.name


def key_of(point) -> tuple[str, str, str]:
    return point.group, point.name, f"{distribution(point)}:{point.value}"


def distribution(point) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(".")[0].partition(":")[0]


def why_missing(framework: str) -> str | None:
    """None if the framework can be imported (it is not, to find out)."""
    if framework == "core" or framework in sys.modules or importlib.util.find_spec(framework) is not None:
        return None
    return f"{framework} is not installed"


def resolve(target: type | str) -> type:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return load(module, attribute)


def load(module_name: str, attribute: str):
    """What "module:attribute" names; raises Later if the module is being imported and has not come that far."""
    module = importlib.import_module(module_name)
    found = module
    for part in filter(None, attribute.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            if getattr(module.__spec__, "_initializing", False):
                raise Later from None
            raise
    return found


def owner_of(target) -> str:
    module = target.partition(":")[0] if isinstance(target, str) else getattr(target, "__module__", "?")
    package = module.partition(".")[0]
    return "memext" if package in ("shared_core", "sj_memext", "snntorch_memext") else package


class Reported:
    """A third party's failure becomes a warning that names it; the others go on."""

    def __init__(self, what: str, owner: str):
        self.what, self.owner, self.failed, self.later = what, owner, False, False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.later = kind is Later
        self.failed = kind is not None and not self.later
        if self.failed and not issubclass(kind, Exception):
            return False  # KeyboardInterrupt and its like are nobody's failure
        if not self.failed:
            return True
        warn(f"{self.what} of {self.owner} was left out: {kind.__name__}: {error}")
        return True


def warn(message: str) -> None:
    warnings.warn(f"memext: {message}", RuntimeWarning, stacklevel=4)
