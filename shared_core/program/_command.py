"""What `memext run` is asked for, checked before the program starts; and the run itself.

Torch is imported by the program, when it wants to (it may set OMP_NUM_THREADS first); so not here.
"""
from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import MemextError
from . import _children
from ._imports import FRAMEWORKS, when_imported
from ._main import run

__all__ = ["METHODS", "Options", "begin_child", "prepare"]

METHODS = ("neuron", "compress", "recompute", "reverse", "sltt", "share", "auto")
_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Options:
    """method: one of METHODS.  budget: bytes, with "auto".  folder: for the report, absolute, or None.  plot: draw it.
    probe: run the first step on copies of the model, to compare.  legacy: code for older SpikingJelly."""

    method: str
    budget: int | None = None
    folder: str | None = None
    plot: bool = False
    probe: bool = True
    legacy: bool = False


def prepare(args) -> Callable[[], int]:
    """Checks the arguments of `memext run`, and returns what runs the program. Raises MemextError."""
    options = _options(args)
    module, program = args.module is not None, args.module or args.program
    if not program:
        raise MemextError("a program is needed: memext run [options] script.py [its arguments], or memext run "
                          "[options] -m module [its arguments]")
    if module and args.program:
        raise MemextError(f"options of run stand before -m; {args.program[0]!r} is not one")
    target, arguments = program[0], list(program[1:])
    if not module and not os.path.exists(target):
        raise MemextError(f"there is no {target!r}; a script, or -m and a module, is needed")
    if module and target in _LAUNCHERS:
        arguments = _workers(args, arguments)
    return lambda: _run(options, target, arguments, module)


def _options(args) -> Options:
    method = args.method or ("neuron" if args.budget is None else "auto")
    if method not in METHODS:
        raise MemextError(f"--method {method!r} is unknown; allowed: {', '.join(METHODS)}")
    if (method == "auto") != (args.budget is not None):
        raise MemextError(f"--method {method} {'needs' if method == 'auto' else 'does not go with'} --budget; "
                          "--budget 8GiB alone is --method auto")
    if args.plot and args.report is None:
        raise MemextError("--plot needs a folder to draw into: --report out/")
    folder = None if args.report is None else os.path.abspath(args.report)
    if folder is not None:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as problem:
            raise MemextError(f"--report {args.report!r} cannot be made: {problem}") from problem
    return Options(method, None if args.budget is None else _bytes(args.budget), folder, args.plot, not args.no_probe,
                   args.legacy)


def _bytes(text: str) -> int:
    from ..plan import bytes_of

    try:
        return bytes_of(text)
    except MemextError as problem:
        raise MemextError(f"--budget {text!r} is no size; allowed: bytes, or a number with KiB, MiB, GiB, TiB, KB, MB, "
                          "GB or TB, e.g. --budget 8GiB") from problem


def _workers(args, arguments: list[str]) -> list[str]:
    """torchrun's arguments with `memext run` put before the program that it starts several times."""
    from torch.distributed.run import get_args_parser

    theirs = get_args_parser().parse_args(arguments)
    if theirs.no_python:
        raise MemextError("torch.distributed.run --no-python starts a command; write: torchrun --no-python ... memext "
                          "run script.py")
    at = len(arguments) - len(theirs.training_script_args) - 1
    mine = [part for name in ("method", "budget", "report") if (value := getattr(args, name)) is not None
            for part in (f"--{name}", value)]
    mine += [f"--{name.replace('_', '-')}" for name in ("plot", "no_probe", "legacy") if getattr(args, name)]
    start = ["shared_core.cli", "run", *mine]
    if theirs.module:
        return [*arguments[:at], *start, "-m", *arguments[at:]]
    return [*arguments[:at], "-m", *start, *arguments[at:]]


def _run(options: Options, target: str, arguments: list[str], module: bool) -> int:
    session = _begin(options)
    if not (module and target in _LAUNCHERS):  # they run no model; the processes that they start speak for themselves
        atexit.register(session.end)  # what the program registers itself is then run before
    if options.legacy:
        _load_compat(session)
    run(target, arguments, module=module, failed=session.failed)
    return 0


def begin_child(options: Options) -> Options:
    """In a spawned process, before the program's module is imported there."""
    session = _begin(options)
    _children.at_end(session.end)
    if options.legacy:
        _load_compat(session)
    return options


def _begin(options: Options):
    from ._waiting import Waiting

    session = Waiting(options)
    for framework, module in FRAMEWORKS.items():
        when_imported(module, lambda framework=framework: session.imported(framework))
    _children.pass_on(options, session.forked)
    return session


def _load_compat(session) -> None:
    try:
        import sj_memext.compat  # noqa: F401
    except ImportError as problem:
        print(f"memext run: --legacy needs sj_memext.compat, which cannot be imported ({problem}); code for older "
              "SpikingJelly runs only with it", file=sys.stderr)
        raise SystemExit(2) from None
    session.caught_up()
