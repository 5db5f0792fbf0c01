"""`memext explain`: a model and the shape of its input, or a program with its arguments."""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from ..errors import MemextError

__all__ = ["explained"]


def explained(args, build: Callable):
    """The Explanation that the command's arguments ask for.

    args: as parsed; args.rest: the target, and what follows it.  build(target, input) -> (model, x).
    """
    target, rest = _target(args)
    if args.module or os.path.isfile(target) or target.endswith(".py"):
        if args.input is not None or args.steps != 1:
            raise MemextError("--input and --steps go with MODULE:FACTORY; a program gives its model its own batches")
        from ._script import explain_program
        return explain_program(target, rest, bool(args.module), plan=not args.no_plan)
    if ":" not in target:
        raise MemextError(f"{target!r} is neither a file nor MODULE:FACTORY; allowed: script.py [its arguments], -m "
                          "module [its arguments], or mynet:build --input 4,8,3,32,32")
    _read_more(args, rest)
    if args.input is None:
        raise MemextError(f"--input is missing: the shape of a batch for {target!r}, e.g. --input 4,8,3,32,32")
    from ._explain import explain
    model, x = build(target, args.input)
    return explain(model, x, steps=args.steps, plan=not args.no_plan)


def _target(args) -> tuple[str, list[str]]:
    if args.module:
        return args.module, args.rest
    if not args.rest and args.json not in (None, "-"):
        raise MemextError(f"--json took {args.json!r} for the file to write, and nothing is left to be explained; "
                          "write --json=PATH, or --json=- to print")
    if not args.rest:
        raise MemextError("what is to be explained? script.py [its arguments], -m module [its arguments], or "
                          "mynet:build --input 4,8,3,32,32")
    return args.rest[0], args.rest[1:]


def _read_more(args, rest: list[str]) -> None:
    """Options of ours that stand behind MODULE:FACTORY; behind a program they are the program's."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--input")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", nargs="?", const="-")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--no-plan", action="store_true")
    try:
        more, unknown = parser.parse_known_args(rest)
    except (argparse.ArgumentError, SystemExit) as problem:
        raise MemextError(f"{' '.join(rest)!r}: {problem}") from problem
    if unknown:
        raise MemextError(f"{' '.join(unknown)!r} is not known here; options are --input, --steps, --json, --all and "
                          "--no-plan")
    for name, value in vars(more).items():
        if value not in (None, False):
            setattr(args, name, value)
