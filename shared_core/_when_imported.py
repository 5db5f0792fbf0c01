"""Something to do once a module has been imported, by whoever imports it and whenever that is.

A framework's optional parts (its exporters need packages that few have installed) are told of our classes this way,
without being imported for it.
"""
from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["when_imported"]


def when_imported(name: str, do: Callable[[ModuleType], None]) -> None:
    """Calls do(module) when the module `name` has run; at once if it is imported already.

    If the import fails, nothing is done, and the next attempt counts. What `do` raises becomes a warning: somebody
    else's import must not fail for it.
    """
    if name in sys.modules:
        _tell(sys.modules[name], do)
    else:
        sys.meta_path.insert(0, _Waiting(name, do))


def _tell(module: ModuleType, do: Callable[[ModuleType], None]) -> None:
    try:
        do(module)
    except Exception as problem:
        warnings.warn(f"{module.__name__} is not the module that memext knows ({type(problem).__name__}: {problem}), "
                      "and was not told of its neurons: compare what it makes of a net with and without them",
                      RuntimeWarning, stacklevel=3)


class _Waiting(MetaPathFinder):
    """Finds nothing itself: it lets the others find one module, and has something to do after that module ran."""

    def __init__(self, name: str, do: Callable[[ModuleType], None]):
        self.name, self.do = name, do

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        finders = sys.meta_path[sys.meta_path.index(self) + 1:]
        spec = next((found for finder in finders if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _tell(module, self.do)

        spec.loader.exec_module = exec_module
        return spec
