"""What happens in one process: neurons are built, models are called for the first time, steps are taken.

While a neuron of ours waits for its model to be called, torch.nn.Module.__call__ is ours; the first call of a module
that holds a neuron (the outermost one, as it comes first) is where the method is applied; then __call__ is Torch's.
"""
from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import registry
from .._plan_copy import reset_copy
from ..substitute import substitute
from ..temporal import _hosts
from . import _apply, _not_reset, _summary
from ._copies import copied, unwrapped
from ._entered_names import keep_names
from ._probe import compared
from ._record import Inert, Recording

__all__ = ["Model", "Session"]

_SHORTEST = 200  # times between optimizer steps that are kept


@dataclass
class Model:
    """One model of the program. outer: as it is called (DistributedDataParallel, ...); net: the program's own module.

    applied: what was done and why not more.  recording: of its first training step, or None.  carried: neurons that
    had the graph of an earlier step when it was last called.
    """

    outer: nn.Module
    net: nn.Module
    applied: _apply.Applied
    recording: Recording | None = None
    carried: dict[str, _not_reset.Carried] = field(default_factory=dict)


class Session:
    def __init__(self, options):
        self.options, self.models, self.hosts = options, [], {}
        self.built, self._alone = 0, weakref.WeakSet()  # neurons, and those of them in no model that was called
        self.steps, self.last_step, self.between = 0, None, []
        self.notes: list[str] = []
        self._rank = 0
        self._later: list[str] = []
        self._known = weakref.WeakSet()
        self._open = contextlib.ExitStack()
        self._call, self._lock, self._inside = None, threading.RLock(), threading.local()
        self._hook = register_optimizer_step_post_hook(self._stepped)

    # ---- building ----

    def imported(self, framework: str) -> None:
        """The framework's neurons exist. Raises whatever its adapter raises where it cannot be used."""
        found = registry.adapters()[framework]
        half = sys.modules.get(found.module)
        if half is not None and getattr(half.__spec__, "_initializing", False):
            self._later.append(framework)  # the program imports the adapter itself, and the framework through it
            self._watch()
            return
        adapter = importlib.import_module(found.load().__name__)
        host = next(host for host in _hosts.imported() if host.framework.name == framework)
        self.hosts[framework] = host
        _apply.prepare(self.options.method, adapter, self.notes, self.compare_loop)

        def joined(neurons):
            host.framework.joined(neurons)
            self.built += len(neurons)
            self._alone.update(neurons)
            self._watch()

        keep_names()
        self._open.enter_context(substitute(replace(host.framework, joined=joined), "neuron"))
        self._watch()

    def catch_up(self) -> None:
        """Frameworks whose adapter was half imported."""
        waiting, self._later = self._later, []
        for framework in waiting:
            self.imported(framework)

    def _watch(self) -> None:
        with self._lock:
            if self._call is not None:
                return
            theirs = self._call = nn.Module.__call__
            seen = self

            def __call__(self, *args, **kwargs):
                seen._first_call(self, args, kwargs)
                return theirs(self, *args, **kwargs)

            nn.Module.__call__ = __call__

    def _unwatch(self) -> None:
        with self._lock:
            if self._call is not None:
                nn.Module.__call__, self._call = self._call, None

    # ---- the first call of a model ----

    def _first_call(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if getattr(self._inside, "busy", False) or module in self._known:
            return
        self._inside.busy = True
        try:
            self.catch_up()
            if self._has_neuron(module):
                self._known.update(module.modules())
                self._alone.difference_update(module.modules())
                self._enter(module, args, kwargs)
        except Exception as problem:  # never the program's
            self._note(f"{type(module).__name__}: {type(problem).__name__}: {problem}")
        finally:
            self._inside.busy = False
            if not self._alone and not self._later:
                self._unwatch()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _has_neuron(self, module: nn.Module) -> bool:
        return any(host.framework.is_neuron(part) for part in module.modules() for host in self.hosts.values())

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        net = unwrapped(module)
        compiled = type(module).__name__ == "OptimizedModule"
        applied = _apply.apply(self.options, list(self.hosts.values()), net, args, kwargs)
        model = Model(module, net, applied)
        inner = [known for known in self.models if any(known.net is part for part in net.modules())]
        self.models = [known for known in self.models if known not in inner] + [model]
        if compiled:
            model.applied.notes.append("inside torch.compile: no step of it is measured")
            return
        process = os.getpid()
        module.register_forward_pre_hook(Inert(lambda *_: self._called(model) if os.getpid() == process else None))
        if self.options.probe and not any(known.recording for known in self.models):
            model.recording = Recording(model, self.hosts.values())

    # ---- steps ----

    def _called(self, model: Model) -> None:
        """Before every forward of a model."""
        try:
            self._look(model)
        except Exception as problem:  # never the program's
            self._note(f"{type(problem).__name__}: {problem}")

    def _look(self, model: Model) -> None:
        if torch.is_grad_enabled():
            found = _not_reset.carried(model.net, self.hosts.values())
            if found:
                model.carried = found
        self._first_rank()
        recording = model.recording
        if recording is not None and recording.complete:
            self.measure(model)

    def measure(self, model: Model) -> None:
        """Compares the recorded step."""
        recording, model.recording = model.recording, None
        try:
            self._compare(model, lambda: recording.measured(self.options))
        finally:
            recording.close()

    def compare_loop(self, net: nn.Module, native, ours) -> None:
        """A step of a loop that the framework owns, of which no call could be recorded."""
        model = next((model for model in self.models if model.net is unwrapped(net)), None)
        if model is not None and self.options.probe and model.applied.measured is None:
            if model.recording is not None:
                model.recording.close()
                model.recording = None
            copy = copied(model.net)
            reset_copy(copy)
            self._compare(model, lambda: compared(
                model.net, copy, native, ours, model.applied.loops,
                "one batch, forward, loss and backward as in the framework's own loop", [], self.options.plot))

    def _compare(self, model: Model, run) -> None:
        if getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        began = time.perf_counter()
        try:
            if self._first_rank():
                model.applied.measured = run()
        except Exception as problem:
            model.applied.notes.append(f"no comparison with a native step: {type(problem).__name__}: {problem}")
        finally:
            self._inside.busy = False
        if self.last_step is not None:
            self.last_step += time.perf_counter() - began

    def _first_rank(self) -> bool:
        """Of several processes that train together; also when they have left their group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._rank = torch.distributed.get_rank()
        return self._rank == 0

    def _stepped(self, optimizer, args, kwargs) -> None:
        if getattr(self._inside, "busy", False):  # a plan's, on tensors without values
            return
        now = time.perf_counter()
        if self.last_step is not None and len(self.between) < _SHORTEST:
            self.between.append(now - self.last_step)
        self.last_step, self.steps = now, self.steps + 1
        for model in self.models:
            if model.recording is not None:
                model.recording.stepped()

    # ---- the end ----

    def explain(self, error: BaseException) -> None:
        text = _not_reset.explanation(error, self.models, self.hosts.values())
        if text:
            print(text, file=sys.stderr, flush=True)

    def forget(self) -> None:
        """In a forked process."""
        self.models, self.built, self.steps, self.between, self.last_step = [], 0, 0, [], None
        self._inside = threading.local()
        self._known.clear()
        self._watch()

    def close(self) -> None:
        self._unwatch()
        self._hook.remove()
        with contextlib.suppress(ValueError, RuntimeError):  # another context than that of the import
            self._open.close()

    def end(self, crashed: bool, problems: list[str]) -> str | None:
        self.close()
        if not self._first_rank():
            return None
        for model in self.models:
            if model.recording is not None:
                if model.recording.complete and not crashed:
                    self.measure(model)
                else:
                    model.applied.notes += [model.recording.failed] if model.recording.failed else []
                    model.recording.close()
        return _summary.text(self, problems)
