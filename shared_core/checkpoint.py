"""Whole modules run again in the backward pass: what is left for neurons that are written by hand.

    checkpoint_modules(net, ["layers.*"])     # in place; keys, parameters, hooks and objects stay
    restore_modules(net)

A neuron that is a loop over local variables inside somebody's forward is out of reach of `retrofit`. A block of such
neurons and layers can still keep its input alone, and run forward once more when its gradient is asked for. That is
torch.utils.checkpoint, with what it leaves to its user: running statistics of norms are updated once, not twice, and a
module that carries a state from one call to the next, whose second run would be another one, is refused.
"""
from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ._entering import class_name
from .errors import MemextError

__all__ = ["checkpoint_modules", "is_checkpointed", "restore_modules"]


def checkpoint_modules(net: nn.Module, modules: Sequence[str]) -> nn.Module:
    """Makes modules of `net` keep their inputs only, and run again in the backward pass. In place; returns net.

    modules: names ("layer1.0") or patterns ("layer1.*"); of nested ones only the outermost is changed, and the net
        itself ("") gains nothing: all of it would be alive at once.
    Costs: one more forward pass of these modules, with the hooks inside them. Gradients are the same; norms count a
    batch once; dropout draws the same masks.
    Raises MemextError: a name that fits nothing; a neuron of a framework inside, for which retrofit has exact methods.
        In the first forward pass: a module inside carries a state from call to call.
    """
    where = "checkpoint_modules"
    if not isinstance(modules, list | tuple | set | frozenset) or not all(isinstance(m, str) for m in modules):
        raise MemextError(f"{where}: modules is {modules!r}; a list of names or patterns is needed, e.g. ['layer1.*']")
    named = {name: module for name, module in net.named_modules() if name}
    for pattern in modules:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise MemextError(f"{where}: {pattern!r} fits no module; the outermost are: "
                              f"{', '.join(name for name, _ in net.named_children()) or 'none'}")
    chosen: dict[str, nn.Module] = {}
    for name, module in named.items():  # parents come before what they hold
        if not any(fnmatchcase(name, p) for p in modules) or any(name.startswith(f"{outer}.") for outer in chosen):
            continue
        if type(module).forward is nn.ModuleList.forward:
            raise MemextError(f"{where}: {name!r} is a {type(module).__name__}, which has no forward to run again; "
                              f"name what it holds: '{name}.*'")
        chosen[name] = module
    for name, module in chosen.items():
        if "forward" in module.__dict__:
            raise MemextError(f"{where}: the forward of {name!r} was replaced on this object, and would run instead; "
                              "undo that first")
        for inner, part in module.named_modules(prefix=name):
            if _of_framework(part):
                raise MemextError(f"{where}: {inner!r} is a {class_name(type(part))}, which holds a state; use "
                                  "retrofit(net, 'recompute'), which knows how to run it again")
    for module in chosen.values():
        if not is_checkpointed(module):
            object.__setattr__(module, "__class__", _rerun(type(module)))
    return net


def restore_modules(net: nn.Module) -> nn.Module:
    """Undoes checkpoint_modules everywhere in `net`; in place, returns net."""
    for module in net.modules():
        if is_checkpointed(module):
            object.__setattr__(module, "__class__", type(module)._memext_runs_again)
    return net


def is_checkpointed(module: nn.Module) -> bool:
    return "_memext_runs_again" in vars(type(module))


def _of_framework(module: nn.Module) -> bool:
    """A module that may hold a state between calls, as SpikingJelly and snnTorch write it."""
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(module).__mro__}
    return bool(names & {"spikingjelly.MemoryModule", "snntorch.SpikingNeuron"})


@cache
def _rerun(cls: type) -> type:
    """A subclass of `cls` whose forward keeps nothing. It pickles as `cls` and is made again."""
    def forward(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return cls.forward(self, *args, **kwargs)
        before = _carried(self)
        out = checkpoint(lambda *a, **k: cls.forward(self, *a, **k), *args, use_reentrant=False, **kwargs,
                         context_fn=lambda: (contextlib.nullcontext(), _buffers_put_aside(self)))
        _refuse_states(self, before, _carried(self))
        return out

    def __reduce_ex__(self, protocol):
        _, _, *rest = object.__reduce_ex__(self, max(protocol, 2))
        return (_new, (cls,), *rest)

    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_memext_runs_again": cls, "forward": forward,
                 "__reduce_ex__": __reduce_ex__}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(namespace))


def _new(cls: type) -> nn.Module:
    made = _rerun(cls)
    return made.__new__(made)


@contextlib.contextmanager
def _buffers_put_aside(module: nn.Module) -> Iterator[None]:
    """Around the second run: copies stand in for buffers, so that what it writes into them is forgotten.

    Not written back in place: autograd may have saved the buffers, and would find them changed.
    """
    kept = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    for m, name, b in kept:
        m._buffers[name] = b.clone()
    try:
        yield
    finally:
        for m, name, b in kept:
            m._buffers[name] = b


def _carried(module: nn.Module) -> dict[tuple[str, str], object]:
    """Tensors that modules hold as plain attributes, and buffers that are no norm's statistics, with their version."""
    found: dict[tuple[str, str], object] = {}
    for name, m in module.named_modules():
        for key, value in vars(m).items():
            if isinstance(value, Tensor):
                found[name, key] = (id(value), value._version)
        if not isinstance(m, nn.modules.batchnorm._NormBase):
            found.update({(name, key): (id(b), b._version) for key, b in m._buffers.items() if b is not None})
    return found


def _refuse_states(module: nn.Module, before: dict, after: dict) -> None:
    for (name, key), value in after.items():
        if before.get((name, key)) != value:
            part = module.get_submodule(name)
            raise MemextError(f"checkpoint_modules: {name or 'the module'!r} ({type(part).__name__}) changes its "
                              f"{key!r} when it is called, and would change it again in the backward pass, which gives "
                              "wrong gradients; leave this module out (restore_modules(net) undoes all)")
