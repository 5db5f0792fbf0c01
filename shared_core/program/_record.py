"""What the first training step was given, and what its loss gave back: enough to run the same step on a copy.

Kept are each call's arguments (the program's own tensors, not copies), the random numbers it began with, and the
gradient that arrived at each of its outputs. So the loss need not be known: forward, and backward from those gradients.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._again import random_state
from .._memory_graph import tensors_in
from ..errors import MemextError
from ._copies import copied, device_of

__all__ = ["Call", "Inert", "Recording", "in_backward"]

_MOST = 10_000  # calls of a model in one step


def in_backward() -> bool:
    """Is this a backward pass, in which methods run forwards again?"""
    return torch._C._current_graph_task_id() != -1


@dataclass
class Call:
    """One call of the model. leaves: arguments, flat; a pair (call, output) of numbers where it is an earlier output.

    versions: of tensors among them, to see later changes in place.  grads: at its outputs; missing where none came.
    """

    leaves: list
    spec: object
    versions: list
    random: tuple
    autocast: tuple[bool, torch.dtype]
    grads: dict[int, Tensor] = field(default_factory=dict)

    def arguments(self, results: list[list[Tensor]]) -> tuple[tuple, dict]:
        values = []
        for leaf, version in zip(self.leaves, self.versions):
            if isinstance(leaf, Tensor):
                if version != (leaf._version, leaf.shape):
                    raise MemextError("an input of the first step was changed in place after it")
                leaf = leaf.detach().requires_grad_(leaf.requires_grad)
            elif isinstance(leaf, _Earlier):
                leaf = results[leaf.call][leaf.output]
            values.append(leaf)
        return tree_unflatten(values, self.spec)


class Inert:
    """A hook that copies and pickles of its module have, too, and that does nothing there."""

    def __init__(self, function: Callable | None = None):
        self.function = function

    def __call__(self, *args):
        if self.function is not None:
            self.function(*args)

    def __deepcopy__(self, memo):
        return Inert()

    def __reduce__(self):
        return Inert, ()


@dataclass(frozen=True)
class _Earlier:
    call: int
    output: int


class Recording:
    """Of one model; starts at its first call with gradients. complete: a backward pass has reached its outputs."""

    def __init__(self, model, hosts):
        self.model, self.hosts = model, list(hosts)
        self.copy: nn.Module | None = None
        self.calls: list[Call] = []
        self.notes: list[str] = []
        self.failed: str | None = None
        self.saw = self.done = self.whole = False
        self._outputs: dict[int, tuple[Tensor, _Earlier]] = {}  # tensors are held, so that ids stay theirs
        self._running: Call | None = None
        outer = model.outer
        self._handles = [outer.register_forward_pre_hook(Inert(self._before), with_kwargs=True),
                         outer.register_forward_hook(Inert(self._after), with_kwargs=True)]

    @property
    def complete(self) -> bool:
        return self.done or (self.saw and not in_backward())

    def stepped(self) -> None:
        """The optimizer has: where no gradient was seen at the outputs, they are tensors that could not be watched."""
        if self.calls and not self.saw and not self.done:
            self.done, self.whole = True, True

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.copy, self.calls, self._outputs = None, [], {}

    # ---- hooks ----

    def _before(self, module, args, kwargs=None):
        try:
            self._begin(args, kwargs)
        except Exception as problem:  # a model that cannot be copied; never the program's
            self._give_up(problem)

    def _after(self, module, args, kwargs, output=None):
        try:
            self._end(output)
        except Exception as problem:
            self._give_up(problem)

    def _give_up(self, problem: Exception) -> None:
        self.failed = f"no comparison with a native step: {type(problem).__name__}: {problem}"
        self.calls, self._outputs, self._running = [], {}, None

    def _begin(self, args, kwargs):
        self._running = None
        if kwargs is None:  # removed by the hook before it, in the same call
            return
        if not torch.is_grad_enabled() or in_backward() or self.complete or self.failed or len(self.calls) >= _MOST:
            return
        if self.copy is None:
            self.copy = copied(self.model.net)
        device = device_of(self.model.net)
        leaves, spec = tree_flatten((args, kwargs))
        kept = []
        for leaf in leaves:
            if isinstance(leaf, Tensor) and id(leaf) in self._outputs:
                leaf = self._outputs[id(leaf)][1]
            elif isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                self._note("arguments that are computed from earlier outputs are constants in the comparison")
            kept.append(leaf)
        versions = [(leaf._version, leaf.shape) if isinstance(leaf, Tensor) else None for leaf in kept]
        autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        self._running = Call(kept, spec, versions, random_state(device), autocast)

    def _end(self, output):
        call, self._running = self._running, None
        if call is None:
            return
        at = len(self.calls)
        self.calls.append(call)
        for i, t in enumerate(tensors_in(output)):
            self._outputs.setdefault(id(t), (t, _Earlier(at, i)))
            if t.requires_grad:
                t.register_hook(self._arrives(call, i))

    def _arrives(self, call: Call, index: int):
        def hook(grad):
            if grad is not None:  # a custom function may leave it out: no path to the loss
                call.grads[index] = grad.detach()
                self.saw = True
        return hook

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # ---- running it on copies ----

    def measured(self, options):
        from ._probe import compare  # it is large, and not every program trains
        self._outputs = {}
        return compare(self, options)
