"""A program's own first three training steps, watched; then it is stopped, and what was seen is said.

The first says what there is. At the start of the second, a state with a graph was not reset. What holds more graphs
after the third than after the second, grows (what is recorded after optimizer.step() is empty at the first).
"""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .._memory_graph import tensors_in
from .._plan_copy import unwrapped
from ..errors import MemextError
from ..program._main import run
from ..temporal._hosts import imported
from ._explain import Explanation, Look
from ._graph import CONTAINERS, Holder, holders, holders_in
from ._watch import Watch

__all__ = ["explain_program"]

_STEPS = 3
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_NODES = 50000
_VARIABLE = "the variable"


class _Enough(BaseException):
    """Ends the program; no `except Exception` of its own stops it."""


def explain_program(target: str, arguments: list[str], module: bool = False, plan: bool = True) -> Explanation:
    """Runs a script, or with module=True what `python -m target` runs, up to its third optimizer step.

    Its first module that is called with gradients is what is explained. Raises MemextError: the program ended and no
    model of it was trained; what it raises else is a finding.
    """
    if not module and not os.path.isfile(target):
        raise MemextError(f"explain: there is no file {target!r}; a script, or MODULE:FACTORY with --input, is needed")
    program = _Program()
    with program:
        try:
            run(target, arguments, module=module, failed=lambda error: None)
        except _Enough:
            pass
        except SystemExit as end:
            program.ended = f"it ended with status {end.code!r}"
        except Exception as problem:
            program.crashed = problem
    return program.explanation(target, plan)


class _Program:
    def __init__(self):
        self.watch: Watch | None = None
        self.look: Look | None = None
        self.model: nn.Module | None = None
        self.samples: tuple = ()
        self.crashed: Exception | None = None  # of the program
        self.failed: Exception | None = None  # of ours
        self.ended = "it ended"
        self.taken, self.sizes, self.nodes = 0, {}, {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Program:
        for handle in (register_module_forward_pre_hook(self._guarded(self._called)),
                       register_optimizer_step_pre_hook(self._guarded(self._before)),
                       register_optimizer_step_post_hook(self._guarded(self._stepped))):
            self._open.callback(handle.remove)
        return self

    def _guarded(self, hook):
        """What goes wrong in a hook of ours is not the program's: it ends the program, and is raised afterwards."""
        def guarded(*args):
            try:
                hook(*args)
            except Exception as problem:
                self.failed = problem
                raise _Enough from problem
        return guarded

    def __exit__(self, *problem) -> None:
        self._open.close()

    # ---- hooks ----

    def _called(self, module: nn.Module, args: tuple) -> None:
        if self.watch is not None or not torch.is_grad_enabled():
            return
        if not any(p.requires_grad for p in module.parameters()):
            return
        self.model = unwrapped(module)
        self.samples = tuple(t.detach() for t in tensors_in(list(args)))
        self.watch = self._open.enter_context(Watch(self.model, imported(), keep=False))
        self.look = Look(self.watch, 1, self.samples)
        if self.model is module:  # its own hooks begin with the next call
            self.watch._before(module, args)

    def _before(self, optimizer, args, kwargs) -> None:
        """Gradients are there: who has one is no longer a guess."""
        if self._is_ours(optimizer) and self.taken == 0:
            self.look.reached = {id(p) for p in self.model.parameters() if p.grad is not None}
            self.look.steps = self.watch.forwards

    def _stepped(self, optimizer, args, kwargs) -> None:
        if not self._is_ours(optimizer):
            return
        self.taken += 1
        found = [*holders(self.model, {m: set(self.watch.states(m)) for m in self.watch.seen}), *_variables()]
        sizes, nodes = {holder.where: holder.size for holder in found}, _scalars()
        self.watch.counting = False
        if self.taken < _STEPS:
            self.sizes, self.nodes = sizes, nodes
            return
        self.look.grows = {where for where, n in sizes.items() if n > self.sizes.get(where, n)}
        # A list in a variable is a step's own business, unless it grows.
        self.look.holders = [h for h in found if h.where in self.look.grows or not h.where.startswith(_VARIABLE)]
        for where, n in nodes.items():
            if n > 1.5 * self.nodes.get(where, n):
                self.look.holders.append(Holder(where, 1, 4, n))
                self.look.grows.add(where)
        raise _Enough

    def _is_ours(self, optimizer) -> bool:
        if self.watch is None:
            return False
        mine = {id(p) for p in self.model.parameters()}
        return any(id(p) in mine for group in optimizer.param_groups for p in group["params"])

    # ---- the end ----

    def explanation(self, target: str, plan: bool) -> Explanation:
        from ._expect import expected
        from ._neurons import neurons
        from ._rules import findings, first

        if self.failed is not None:
            raise self.failed
        if self.look is None:
            said = f"{type(self.crashed).__name__}: {self.crashed}" if self.crashed is not None else self.ended
            raise MemextError(f"explain: {target!r} called no module with gradients ({said}); a program that trains a "
                              "model is needed")
        look = self.look
        look.crashed = self.crashed
        if self.taken == 0:
            look.steps = max(1, self.watch.forwards)
        look.before = {s.name or s.kind: s.entered_with for s in self.watch.seen.values() if s.entered_with}
        made = Explanation(type(self.model).__name__, [tuple(x.shape) for x in self.samples], look.steps, None, None)
        made.neurons, made.T, made.N = neurons(look)
        made.findings = findings(look, made)
        if plan and self.taken:
            made.methods = expected(self.model, self.samples, look.steps, made, self.watch)
        made.advice = first(made, look)
        return made


# ---- the program's variables ----

def _frames() -> Iterator[tuple[str, dict]]:
    """(what to call it, variables) of the program's functions that run now; neither Torch's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith((_PACKAGE + os.sep, _TORCH + os.sep)) and frame.f_globals.get("__name__") != "runpy":
            function = frame.f_code.co_name
            yield "" if function == "<module>" else f" in {function}()", frame.f_locals
        frame = frame.f_back


def _variables() -> list[Holder]:
    return [holder for where, variables in _frames() for name, value in list(variables.items())
            if isinstance(value, CONTAINERS) and not name.startswith("__")
            for holder in holders_in(f"{_VARIABLE} {name!r}{where}", value)]


def _scalars() -> dict[str, int]:
    """Variables that are one number with a graph, as a loss, or a sum of losses: the size of the graph."""
    return {f"{_VARIABLE} {name!r}{where}": _size(value) for where, variables in _frames()
            for name, value in list(variables.items())
            if isinstance(value, Tensor) and value.numel() == 1 and value.grad_fn is not None}


def _size(t: Tensor) -> int:
    seen, waiting = set(), [t.grad_fn]
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [after for after, _ in node.next_functions]
    return len(seen)

