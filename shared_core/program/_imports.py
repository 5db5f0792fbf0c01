"""A call back when the program has imported a framework: before it can build a model, and not before it wants to."""
from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["FRAMEWORKS", "when_imported"]

# Framework -> the module after whose import its neurons exist.
FRAMEWORKS = {"spikingjelly": "spikingjelly.activation_based", "snntorch": "snntorch"}


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Calls `then` once, as soon as module `name` has been executed; at once if it has been."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder:
    """Finds one module as the other finders would, and adds the call to its loader."""

    def __init__(self, name: str, then: Callable[[], None]):
        self.name, self.then = name, then

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        execute = getattr(loader, "exec_module", None)
        if execute is not None:  # a loader of this one module: shadowing its method touches no other
            def exec_module(module):
                del loader.exec_module
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.then()
            loader.exec_module = exec_module
        return spec
