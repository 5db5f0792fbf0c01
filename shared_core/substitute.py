"""Our neurons under the framework's names while a model is being built.

The framework's classes stay the same objects, so `from ... import LIFNode` done earlier is no way past it: their
`__init__` is wrapped, and a new object of exactly that class changes its class before anything else happens. A wrapper
acts only in the thread (more precisely: the context) that is inside the `with`; elsewhere it just calls the original.
"""
from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch import nn

from . import registry
from ._entering import Change, entered
from .errors import MemextError
from .retrofit import ALREADY, Framework, Report, classify

__all__ = ["substitute"]


@dataclass(frozen=True)
class _Session:
    framework: Framework
    report: Report


_sessions: ContextVar[tuple[_Session, ...]] = ContextVar("memext_sessions", default=())
_lock = threading.Lock()
_users: dict[type, int] = {}  # host classes that are wrapped -> how many `with` blocks need it
_live: dict[type, object] = {}  # whose wrapper it is that acts; one that somebody has put back later does not


@contextlib.contextmanager
def substitute(framework: Framework, method: str = "neuron") -> Iterator[Report]:
    """Context manager and decorator: neurons that are constructed inside become ours, as by retrofit(net, "neuron").

    Yields a Report that fills up while neurons are built; they have no names yet, and are counted per class. Subclasses
    that override equations stay as they are, with the reason in the report. restore(net) works on the result.
    Raises MemextError: a method that cannot be applied to single neurons.
    """
    if method != "neuron":
        raise MemextError(f"{framework.package}.substitute: method is {method!r}; allowed: 'neuron'. Others need the "
                          f"whole model: build it, then call {framework.package}.retrofit(net, method)")
    report = Report(method)
    hosts = list(registry.replacements(framework.name))
    token = _sessions.set((*_sessions.get(), _Session(framework, report)))
    wrapped: list[type] = []
    try:
        for host in hosts:
            _wrap(host)
            wrapped.append(host)
        yield report
    finally:
        _sessions.reset(token)
        for host in reversed(wrapped):
            _unwrap(host)


def _wrap(host: type) -> None:
    with _lock:
        _users[host] = _users.get(host, 0) + 1
        if _users[host] > 1:
            return
        original, own = host.__init__, "__init__" in vars(host)
        token = _live[host] = object()

        @functools.wraps(original)
        def __init__(self, *args, **kwargs):
            session = _become(host, self) if _live.get(host) is token else None
            if session is not None and entered(self)[-1].before is host:
                type(self).__init__(self, *args, **kwargs)  # ours, which may take more; comes back, to the original
            else:
                original(self, *args, **kwargs)
            if session is not None:
                session.framework.joined([self])

        __init__._memext_undo = (original, own)
        host.__init__ = __init__


def _unwrap(host: type) -> None:
    with _lock:
        _users[host] -= 1
        if _users[host]:
            return
        del _users[host], _live[host]
        # Somebody may have wrapped __init__ over ours meanwhile: then theirs stays, and ours below it does nothing.
        original, own = getattr(vars(host).get("__init__"), "_memext_undo", (None, False))
        if original is None:
            return
        if own:
            host.__init__ = original
        else:
            del host.__init__


def _become(host: type, neuron: nn.Module) -> _Session | None:
    """Makes a neuron that `host.__init__` is about to fill one of ours; the session it did so for, or None."""
    if entered(neuron):
        return None
    for session in reversed(_sessions.get()):
        table = registry.replacements(session.framework.name)
        if next((cls for cls in type(neuron).__mro__ if cls in table), None) is not host:
            continue  # another framework's session, or the wrapper of a nearer base class decides
        kind, report = type(neuron).__name__, session.report
        ours, reason = classify(session.framework, neuron)
        if reason == ALREADY:
            return None
        name = f"{kind} #{sum(kind == seen for _, seen, _ in report.changed + report.skipped) + 1}"
        if ours is None:
            report.skipped.append((name, kind, reason))
            return None
        Change(name, neuron, ours).apply(session.framework.name, report.method)
        report.changed.append((name, kind, ours.__name__))
        return session
    return None
