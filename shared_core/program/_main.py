"""The program as `__main__`: module, arguments and path as if Python ran it, and tracebacks without frames of ours."""
from __future__ import annotations

import io
import os
import runpy
import sys
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path

__all__ = ["run"]

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_HERE)
# Between the program and what it calls: the command, this package, and the constructors that `substitute` wraps.
_OURS = (os.path.join(_PACKAGE, "cli.py"), os.path.join(_PACKAGE, "substitute.py"), _HERE + os.sep)
_kept: list[types.ModuleType] = []  # the module that was `__main__`: its globals are those of our caller


def run(target: str, arguments: list[str], *, module: bool, failed: Callable[[BaseException], None]) -> None:
    """Runs a script (or a folder or archive with `__main__.py`), or with module=True what `python -m target` runs.

    failed: called after the traceback of an exception that ends the program was printed.
    Raises whatever the program raises; what Python does about it afterwards (exit status, signal) is left to Python.
    """
    _kept.append(sys.modules["__main__"])
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    script = not module and os.path.isfile(target) and not _is_archive(target)
    sys.argv[:] = ["-m" if module else target, *arguments]
    _set_path(os.getcwd() if module else os.path.dirname(os.path.realpath(target)) if script else target)
    try:
        if script:
            _execute(target, main)
        else:  # as Python's own start does it; "__main__" is that of the folder or archive
            runpy._run_module_as_main(target if module else "__main__", module)
    except BaseException:
        _without_our_frames(failed)
        raise


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _set_path(first: str) -> None:
    """The program's folder instead of the command's; this package stays importable where it was found through that."""
    if not getattr(sys.flags, "safe_path", False) and sys.path:
        sys.path[0] = first
    else:
        sys.path.insert(0, first)
    root = os.path.dirname(_PACKAGE)
    if find_spec("shared_core") is None or (Path(root, "sj_memext").is_dir() and find_spec("sj_memext") is None):
        sys.path.append(root)


def _execute(path: str, main: types.ModuleType) -> None:
    with io.open_code(path) as file:
        source = file.read()
    path = os.path.abspath(path)
    main.__dict__.update(__file__=path, __cached__=None, __spec__=None, __package__=None,
                         __loader__=SourceFileLoader("__main__", path), __annotations__={})
    exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def _without_our_frames(failed: Callable[[BaseException], None]) -> None:
    """The exception goes on to Python, which prints it through sys.excepthook, whoever's that is, and sets the status.

    SystemExit never comes there.
    """
    theirs = sys.excepthook

    def excepthook(kind, error, traceback):
        for one in _chain(error):
            one.__traceback__ = _stripped(one.__traceback__)
        theirs(kind, error, error.__traceback__)
        failed(error)

    sys.excepthook = excepthook


def _chain(error: BaseException | None) -> list[BaseException]:
    """The exception and those that led to it."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and all(one is not other for other in found):
            found.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return found


def _stripped(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """Without our frames, wherever they are, and without those that led to the program's first."""
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    ours = [i for i, frame in enumerate(frames) if _is_ours(frame)]
    start = next((i for i in ours if _file(frames[i]) == os.path.abspath(__file__)), -1)
    kept = [frame for i, frame in enumerate(frames) if i > start and i not in ours]
    for frame, after in zip(kept, [*kept[1:], None]):
        frame.tb_next = after
    return kept[0] if kept else None


def _file(frame: types.TracebackType) -> str:
    return os.path.abspath(frame.tb_frame.f_code.co_filename)


def _is_ours(frame: types.TracebackType) -> bool:
    return _file(frame).startswith(_OURS)
