"""A step function with everything it reads made explicit, so that it can be run again without anyone noticing.

`step(x, *state)` reads parameters, buffers and hidden states. To rebuild a step in the backward pass, parameters are
exchanged for aliases (their gradients are summed in the aliases, and the hooks of the parameters run once, at the end),
buffers for copies (running statistics move once), and hidden states are set to what they
were; afterwards every object holds what it held before.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .. import registry
from .._again import put_back
from ..chain.pool import max_pool2d, pool_of
from ..errors import MemextError
from ..retrofit import classify
from ._captured import Place, captured
from ._hosts import Cell, hosts

__all__ = ["Program"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Program:
    """step: a Module or callable.  inputs: None, or the user's function t -> x, which may read parameters, too."""

    def __init__(self, step: Callable, inputs: Callable | None = None):
        self.step, self.hosts = step, hosts()
        modules, places = captured(step)
        if inputs is not None:
            more = captured(inputs)
            modules, places = modules + more[0], places + more[1]
        self.named = list({m: name for root in modules for name, m in root.named_modules()}.items())
        self.modules = [m for m, _ in self.named]
        self._places = [*places, *(Place(m._parameters, name) for m in self.modules
                                   for name, p in m._parameters.items() if p is not None and p.requires_grad)]
        self.parameters: list[Tensor] = list({id(t): t for t in (place.get() for place in self._places)}.values())
        self.cells = [Cell(host, m, name) for m in self.modules for host in self.hosts for name in host.states(m)]
        for m, name in self.named:
            for host in self.hosts:
                host.check(m, name)
        self.out_spec = self.state_spec = None

    # ---- one step ----

    def hidden(self) -> list:
        return [cell.get() for cell in self.cells]

    def run(self, x, states: Sequence, explicit: int) -> tuple[list[Tensor], list]:
        """(outputs flat, states after). states: `explicit` ones that the step takes and returns, then hidden ones."""
        for cell, value in zip(self.cells, states[explicit:]):
            cell.set(value)
        if explicit:
            given = tree_unflatten(list(states[:explicit]), self.state_spec)
            out = self.step(x, *given)
            if not isinstance(out, tuple) or len(out) != 2:
                raise MemextError(f"unroll: the step returned {_shown(out)}; with state= it must return two things, "
                                  "(outputs, state): return (spk, mem2), (mem1, mem2)")
            out, after = out
            after, _ = tree_flatten(after if isinstance(after, tuple | list) else (after,))
            if len(after) != explicit:
                raise MemextError(f"unroll: the step returned {len(after)} states; {explicit} were given with state=")
        else:
            out, after = self.step(x), []
        flat, self.out_spec = tree_flatten(out)
        for t in flat:
            if not isinstance(t, Tensor):
                raise MemextError(f"unroll: the step returned {_shown(out)}; a tensor, or a tuple, list or dict of "
                                  "tensors, is needed")
        return flat, [*after, *self.hidden()]

    def _stateful(self) -> set[nn.Module]:
        """Neurons too that are handed their states: snnTorch's keep the last one all the same."""
        neurons = {m for m in self.modules if any(host.framework.is_neuron(m) for host in self.hosts)}
        return neurons | {cell.module for cell in self.cells}

    # ---- running it again ----

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Neurons that have a fused counterpart are it, for a while: same values, and their spikes can be taped. Max
        pooling, which in a step costs as much as a convolution, runs on our kernel."""
        changed, pools = [], []
        kinds = {nn.MaxPool2d}.union(*(host.pools for host in self.hosts))
        try:
            for host in self.hosts:
                table = registry.replacements(host.framework.name)
                for m in self.modules:
                    if type(m) in table and classify(host.framework, m, table)[0] is table[type(m)]:
                        changed.append((host, m, type(m)))
                        m.__class__ = table[type(m)]
            for m in self.modules:
                if type(m) in kinds and "forward" not in m.__dict__ and not m.return_indices:
                    m.__dict__["forward"] = partial(_max_pool2d, type(m).forward, m)
                    pools.append(m)
            yield
        finally:
            for m in pools:
                del m.__dict__["forward"]
            for host, m, cls in changed:
                host.leave(m)
                m.__class__ = cls

    @contextmanager
    def aside(self) -> Iterator[list[Tensor]]:
        """Yields one alias per parameter, each a leaf; runs inside leave no trace.

        All buffers are copied: which of them a step writes to cannot be told (Torch's batch norm moves its running
        statistics without counting a version up).
        """
        aliases = [p.detach().requires_grad_() for p in self.parameters]
        by_id = {id(p): alias for p, alias in zip(self.parameters, aliases)}
        undo: list[tuple[Callable, tuple]] = []
        try:
            for place in self._places:
                value = place.get()
                undo.append((place.set, (value,)))
                place.set(by_id[id(value)])
            copies: dict[int, Tensor] = {}
            hidden = {(cell.module, cell.name) for cell in self.cells}
            for module in self.modules:
                for name, value in module._buffers.items():
                    if value is not None and (module, name) not in hidden:
                        undo.append((module._buffers.__setitem__, (name, value)))
                        module._buffers[name] = copies.setdefault(id(value), value.clone())
            for m in self._stateful():
                undo.append((put_back, (m, dict(m.__dict__), dict(m._buffers))))
            for cell in self.cells:
                undo.append((cell.set, (cell.get(),)))
            yield aliases
        finally:
            for function, arguments in reversed(undo):
                function(*arguments)


def _max_pool2d(theirs: Callable, module: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() != 4 or x.device.type != "cpu" or x.dtype not in _FLOATS:
        return theirs(module, x)
    return max_pool2d(x, pool_of(module), chains=False)


def _shown(value) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r:.60}"


def leaf(value):
    """A state that gradients can be asked of; what is no floating-point tensor, as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_()
    return value


def unchanged_mode(device: torch.device):
    """Autocast as it is now, without its cache: it would serve a weight cast under no_grad where a gradient is due."""
    if not torch.is_autocast_enabled(device.type):
        return lambda: torch.autocast(device.type, enabled=False)
    dtype = torch.get_autocast_dtype(device.type)
    return lambda: torch.autocast(device.type, dtype=dtype, cache_enabled=False)
