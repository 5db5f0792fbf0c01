"""How a module becomes one of ours and back: its class is reassigned, the object stays the same.

Keys, parameters, hooks, isinstance, deepcopy and pickle keep working, because nothing is wrapped or rebound. What was
done to an object is written in its own `__dict__`, so that a copy, an unpickled or a moved module can be restored.
"""
from __future__ import annotations

import copyreg
import types
from dataclasses import dataclass, field
from functools import cache

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["Change", "Entered", "class_name", "combined", "entered", "leave", "plain_type", "put_back", "why_left"]

MARK = "_entered_by_memext"  # not "_memext_...": neurons drop their caches of that name when they are copied


@dataclass(frozen=True)
class Entered:
    """One entering of one module: for which framework and by which method; what the module was (without
    parametrization), what was mixed in, what was set on it, and what stood there before."""

    framework: str
    method: str
    before: type
    ours: type
    attributes: tuple[str, ...] = ()
    covered: tuple[tuple[str, object], ...] = ()

    @property
    def after(self) -> type:
        return combined(self.before, self.ours)


@dataclass(frozen=True)
class Change:
    """`module`, known as `name`, becomes an instance of `ours`; `attributes` are set on the object meanwhile."""

    name: str
    module: nn.Module
    ours: type
    attributes: dict[str, object] = field(default_factory=dict)

    def apply(self, framework: str, method: str) -> tuple[nn.Module, type]:
        """Does it, in the name of a framework's method; returns what `put_back` needs to take it back at once."""
        module, current = self.module, type(self.module)
        before = plain_type(module)
        _assign_class(module, _with_base(module, combined(before, self.ours)))
        covered = tuple((name, module.__dict__[name]) for name in self.attributes if name in module.__dict__)
        module.__dict__.update(self.attributes)
        record = Entered(framework, method, before, self.ours, tuple(self.attributes), covered)
        module.__dict__[MARK] = (*entered(module), record)
        return module, current


def put_back(module: nn.Module, was: type) -> None:
    """Undoes the newest entering of a module whose exact class was `was`."""
    *older, last = entered(module)
    _assign_class(module, was)
    _unmark(module, older, last)


def leave(module: nn.Module) -> Entered:
    """Takes the newest entering back, through a parametrization that came before or after it. See why_left first."""
    *older, last = entered(module)
    _assign_class(module, _with_base(module, last.before))
    _unmark(module, older, last)
    return last


def why_left(module: nn.Module) -> str | None:
    """None if `leave` can undo the newest entering; else what stands in the way."""
    last, current = entered(module)[-1], plain_type(module)
    if current is last.after:
        return None
    return f"it was made {class_name(last.after)}, and is now {class_name(current)}"


def entered(module: nn.Module) -> tuple[Entered, ...]:
    """What was done to this object, oldest first; () for one that is not entered."""
    return module.__dict__.get(MARK, ())


def plain_type(module: nn.Module) -> type:
    """The module's class, looked at through torch.nn.utils.parametrize."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@cache
def combined(before: type, ours: type) -> type:
    """`ours` for the host class itself; for a subclass of the host, a class that is both.

    The second kind exists nowhere by name, so its instances pickle as (before, ours) and the class is made again.
    """
    if issubclass(ours, before):
        return ours
    if issubclass(before, ours):  # it is ours already
        return before
    namespace = {"__module__": before.__module__, "__reduce_ex__": _reduce_combined, "_memext_pair": (before, ours),
                 "__doc__": f"{before.__name__}, run as {ours.__name__}."}
    name = f"{ours.__name__}Of{before.__name__}"
    return types.new_class(name, (before, ours), {"metaclass": _meta(type(before))},
                           exec_body=lambda body: body.update(namespace))


@cache
def _meta(host: type) -> type:
    """The class of a combined class, by which pickle finds it: a module that is entered twice refers to it."""
    found = type("Combined", (host,), {})
    copyreg.pickle(found, lambda cls: (combined, cls._memext_pair))
    return found


def _reduce_combined(self, protocol):
    _, _, *rest = object.__reduce_ex__(self, max(protocol, 2))
    return (_new_combined, type(self)._memext_pair, *rest)


def _new_combined(before: type, ours: type):
    cls = combined(before, ours)
    return cls.__new__(cls)


def _with_base(module: nn.Module, base: type) -> type:
    """`base`, under the module's parametrization if it has one.

    Torch keeps the parametrized tensors as properties of a class made for this one module, and on removal deletes
    them there and takes `__bases__[0]`: so that class is made again over `base`, never put beside it.
    """
    if not is_parametrized(module):
        return base
    current = type(module)
    namespace = {name: value for name, value in vars(current).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), namespace)


def _assign_class(module: nn.Module, cls: type) -> None:
    object.__setattr__(module, "__class__", cls)


def _unmark(module: nn.Module, older: list[Entered], last: Entered) -> None:
    for name in last.attributes:
        module.__dict__.pop(name, None)
    module.__dict__.update(last.covered)
    if older:
        module.__dict__[MARK] = tuple(older)
    else:
        del module.__dict__[MARK]
