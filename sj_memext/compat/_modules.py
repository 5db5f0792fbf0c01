"""The old modules, found by Python's import only where there is no real one.

The finder stands last in sys.meta_path: a module that exists on disk is found before it is asked.
"""
from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

from shared_core.errors import MemextError

from ._mapping import GONE, MODULES, Old
from ._patches import PATCHES

__all__ = ["GoneError", "install", "made", "uninstall"]


class GoneError(MemextError, ImportError):
    """A name of an old release that has no counterpart. An ImportError, so that `from ... import name` shows its text
    (an AttributeError's is lost there), and `try: ... except ImportError:` does what it did without CuPy."""


class _OldModule(ModuleType):
    """A module of the table. Names of this package stand in it; others are looked up in SpikingJelly 2."""

    def __getattr__(self, name: str):
        old: Old = MODULES[self.__name__]
        if name.startswith("__"):
            raise AttributeError(name)
        if name in old.gone:
            raise _gone(self.__name__, name, old.gone[name])
        for package in (self.__name__, self.__name__.rpartition(".")[0]):  # and neuron.surrogate, which it imported
            if f"{package}.{name}" in MODULES:
                return importlib.import_module(f"{package}.{name}")
        host = importlib.import_module(old.host) if old.host else None
        if hasattr(host, name):
            return getattr(host, name)
        if "*" in old.gone:
            raise _gone(self.__name__, name, old.gone["*"])
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}, in no release of SpikingJelly that "
                             "sj_memext.compat knows")

    def __dir__(self):
        host = MODULES[self.__name__].host
        return sorted({*vars(self), *(dir(importlib.import_module(host)) if host else ())})


def _gone(module: str, name: str, why: str) -> GoneError:
    return GoneError(f"{module}.{name}: {why}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the modules of the table."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in MODULES:
            return None
        package = any(name.startswith(fullname + ".") for name in MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, origin="sj_memext.compat", is_package=package)

    def create_module(self, spec):
        return _OldModule(spec.name, f"{spec.name} of an old release, by sj_memext.compat.")

    def exec_module(self, module):
        for name in MODULES[module.__name__].ours:
            ours = importlib.import_module(f"{__package__}.{name}")
            vars(module).update({public: getattr(ours, public) for public in ours.__all__ if public != "install"})
        host = MODULES[module.__name__].host
        if host:
            module.__all__ = sorted({*(n for n in vars(module) if not n.startswith("_")),
                                     *(n for n in vars(importlib.import_module(host)) if not n.startswith("_"))})


_FINDER = _Finder()


def install() -> None:
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    for module_name, names in GONE.items():
        module = importlib.import_module(module_name)
        PATCHES.add(module, "__getattr__", _explain(module_name, names))


def _explain(module_name: str, names: dict[str, str]):
    def __getattr__(name: str):
        why = names.get(name) or next((why for key, why in names.items()
                                       if key.endswith("*") and name.startswith(key[:-1])), None)
        if why:
            raise _gone(module_name, name, why)
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    return __getattr__


def made() -> list[str]:
    """Names of the old modules that were imported so far, from here."""
    return [name for name, module in sys.modules.items() if isinstance(module, _OldModule)]


def uninstall() -> None:
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    for name in made():
        parent, _, child = name.rpartition(".")
        holder = sys.modules.get(parent)
        if holder is not None and vars(holder).get(child) is sys.modules[name]:
            delattr(holder, child)
    for name in made():
        del sys.modules[name]
