"""Which neurons and adapters exist: ours, and those of any installed package.

A package adds a neuron through the entry-point group `memext.neurons`, an adapter for a framework through
`memext.adapters`. Our own come in by the same door:

    [project.entry-points."memext.adapters"]
    spikingjelly = "sj_memext"                               # a module with register()

    [project.entry-points."memext.neurons"]
    "spikingjelly.FusedIFNode" = "sj_memext.retrofit:FUSED_IF"   # <framework>.<neuron> = NeuronEntry, or a function
                                                                 # without arguments that returns one
A framework is named as its package is imported. Nothing of a framework is imported before it is asked for: the part
before the dot says which entries belong to it. Keep a NeuronEntry in a module that imports little, with its classes
written as "module:attribute"; then it does not matter which package is imported first.
"""
from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType

from ._entry_points import (
    Later,
    Reported,
    distribution,
    key_of,
    load,
    owner_of,
    points,
    resolve,
    split,
    warn,
    why_missing,
)
from .dynamics import DYNAMICS, Dynamics
from .errors import MemextError

__all__ = ["Adapter", "NeuronEntry", "adapters", "neurons", "register", "replacements", "serve"]

NEURON_GROUP, ADAPTER_GROUP = "memext.neurons", "memext.adapters"


@dataclass(frozen=True)
class NeuronEntry:
    """One neuron, as others see it. A class is given as itself or as "module:attribute", loaded when needed.

    name: the class name under which it appears in the framework's namespace.
    framework: the framework's import name ("spikingjelly", "snntorch"), or "core" for dynamics without a class.
    target: the neuron's class.  replaces: the framework's own class that retrofit turns into it, or None.
    dynamics: what it computes (a subclass of dynamics.Dynamics), or None if its maths is its own.
    emits: its output alphabet, where `dynamics` does not say.  owner: the distribution; filled in when registered.
    missing: why it cannot be used here, or None.
    """

    name: str
    framework: str
    target: type | str
    replaces: type | str | None = None
    dynamics: type[Dynamics] | str | None = None
    emits: str | None = None
    owner: str = ""
    missing: str | None = None

    @cached_property
    def cls(self) -> type:
        return resolve(self.target)

    @cached_property
    def host(self) -> type | None:
        return None if self.replaces is None else resolve(self.replaces)

    @property
    def alphabet(self) -> str | None:
        if self.emits is not None or self.dynamics is None or self.missing:
            return self.emits
        return resolve(self.dynamics).alphabet

    @property
    def backends(self) -> tuple[str, ...]:
        """Where its maths can run: the Torch path always, the kernels if kernels/neuron.h has its struct."""
        if self.missing:
            return (self.missing,)
        if self.dynamics is None:
            return ()
        return ("reference", "native", "cuda") if resolve(self.dynamics).struct else ("reference",)


@dataclass(frozen=True)
class Adapter:
    """A module that brings our neurons to one framework. missing: why it cannot be used here, or None."""

    framework: str
    module: str
    owner: str
    missing: str | None = None

    def load(self) -> ModuleType:
        """Imports the adapter and calls its register(). Raises MemextError if the framework is not installed."""
        if self.missing:
            raise MemextError(f"the adapter {self.module} cannot be used: {self.missing}; install the framework first")
        module = importlib.import_module(self.module)
        module.register()
        return module


@dataclass
class _Served:
    """A framework whose adapter is loaded: where its neurons appear, and which host classes they replace."""

    namespace: ModuleType
    table: dict[type, NeuronEntry]


_entries: dict[tuple[str, str], NeuronEntry] = {}
_served: dict[str, _Served] = {}
_waiting: list[tuple[str, str]] = []      # keys of entries that are not yet in their framework's namespace
_done: set[tuple[str, str, str]] = set()  # entry points that were taken in, or failed and were said
_lock = threading.RLock()


def register(entry: NeuronEntry) -> NeuronEntry:
    """Makes a neuron known, and puts it into its framework's namespace once that adapter is imported.

    The same entry again is fine. Raises MemextError if it is malformed, if its name is taken (by another entry or in
    the framework itself) or the class it replaces already is replaced; both owners are named, nothing is changed.
    """
    entry = _checked(entry)
    key = (entry.framework, entry.name)
    with _lock:
        known = _entries.get(key)
        if known is not None:
            if replace(known, owner="") == replace(entry, owner=""):
                return known
            raise MemextError(f"registry.register: the neuron {entry.name!r} of {entry.framework} is already "
                              f"registered by {known.owner}; {entry.owner} must choose another name")
        if entry.framework in _served:
            try:
                _place(_served[entry.framework], entry)
            except Later:
                _waiting.append(key)
        _entries[key] = entry
    return entry


def serve(framework: str, namespace: ModuleType) -> None:
    """For adapters: from now on the neurons of `framework` appear in `namespace`, those to come as well.

    Entries that cannot be placed are left out with a warning that names their owner.
    """
    with _lock:
        if framework in _served:
            return
        _served[framework] = _Served(namespace, {})
        _waiting.extend(key for key in _entries if key[0] == framework)
    _discover(framework)


def neurons(framework: str | None = None) -> list[NeuronEntry]:
    """All known neurons (of one framework), sorted by framework and name.

    Those whose framework is not installed are listed too, with `missing` set. Imports the frameworks it lists, and
    their adapters.
    """
    for adapter in adapters().values():
        key = (ADAPTER_GROUP, adapter.framework, adapter.module)
        if adapter.missing or framework not in (None, adapter.framework) or key in _done:
            continue
        _done.add(key)
        with Reported(f"the adapter {adapter.module!r}", adapter.owner):
            adapter.load()
    _discover(framework)
    rows = list(_entries.values())
    rows += [NeuronEntry(cls.__name__, "core", cls, dynamics=cls, owner=owner_of(cls)) for cls in DYNAMICS.values()]
    for point in points(NEURON_GROUP):
        home, name = split(point)
        if why_missing(home):
            rows.append(NeuronEntry(name, home, point.value, owner=distribution(point), missing=why_missing(home)))
    named = {row.framework for row in rows}
    rows += [NeuronEntry(f"(adapter {adapter.module})", adapter.framework, adapter.module, owner=adapter.owner,
                         missing=adapter.missing)
             for adapter in adapters().values() if adapter.missing and adapter.framework not in named]
    rows = [row for row in rows if framework in (None, row.framework)]
    return sorted(rows, key=lambda row: (row.framework, row.name))


def adapters() -> dict[str, Adapter]:
    """The installed adapters by framework; none is imported. A second one for a framework is left out, said once."""
    found: dict[str, Adapter] = {}
    for point in points(ADAPTER_GROUP):
        adapter = Adapter(point.name, point.value, distribution(point), why_missing(point.name))
        first = found.setdefault(point.name, adapter)
        if first.module != adapter.module and key_of(point) not in _done:
            _done.add(key_of(point))
            warn(f"{adapter.owner} offers the adapter {adapter.module} for {point.name}, which {first.owner} already "
                  f"serves with {first.module}; the first is used")
    return found


def replacements(framework: str) -> dict[type, type]:
    """Host class -> our class, for what retrofit and substitute exchange. Empty before the adapter is imported."""
    _discover(framework)
    served = _served.get(framework)
    return {} if served is None else {host: entry.cls for host, entry in served.table.items()}


# ---- entry points ----

def _discover(framework: str | None) -> None:
    """Takes in the entry points of a framework (None: of all that are installed), and places what was waiting."""
    with _lock:
        for key in _waiting.copy():
            entry = _entries[key]
            with Reported(f"the neuron {entry.name!r}", entry.owner) as outcome:
                _place(_served[entry.framework], entry)
            if not outcome.later:
                _waiting.remove(key)
            if outcome.failed:
                del _entries[key]
        for point in points(NEURON_GROUP):
            home, _ = split(point)
            if framework not in (None, home) or key_of(point) in _done or why_missing(home):
                continue
            _done.add(key_of(point))  # before loading: an import may lead back here
            with Reported(f"the entry point {point.name!r} = {point.value!r}", distribution(point)) as outcome:
                entry = _load(point)
                if not isinstance(entry, NeuronEntry):
                    raise MemextError(f"it is {type(entry).__name__}; a shared_core.registry.NeuronEntry, or a "
                                      "function that returns one, is needed")
                if entry.framework != home:
                    raise MemextError(f"its framework is {entry.framework!r}; the part of its name before the dot "
                                      "must say the same")
                register(replace(entry, owner=distribution(point)))
            if outcome.later:
                _done.discard(key_of(point))


def _load(point):
    value = load(point.module, point.attr)
    return value() if callable(value) and not isinstance(value, type) else value


# ---- one entry ----

def _checked(entry: NeuronEntry) -> NeuronEntry:
    if not isinstance(entry, NeuronEntry):
        raise MemextError(f"registry.register: {type(entry).__name__} given; a NeuronEntry is needed")
    where = f"registry.register({entry.name!r})"
    if not isinstance(entry.name, str) or not entry.name.isidentifier():
        raise MemextError(f"{where}: a name must be a Python identifier; it becomes an attribute of the framework's "
                          "module")
    if not isinstance(entry.framework, str) or not entry.framework.isidentifier():
        raise MemextError(f"{where}: framework is {entry.framework!r}; the import name of the framework is needed, "
                          "e.g. 'spikingjelly'")
    for field in ("target", "replaces", "dynamics"):
        value = getattr(entry, field)
        written = isinstance(value, str) and all(value.partition(":")) and value.count(":") == 1
        if not (isinstance(value, type) or written or (value is None and field != "target")):
            raise MemextError(f"{where}: {field} is {value!r}; a class or 'module:attribute' is needed")
    if not entry.owner:
        entry = replace(entry, owner=owner_of(entry.target))
    return entry


def _place(served: _Served, entry: NeuronEntry) -> None:
    """Into the framework's namespace and the table of replaced classes; all or nothing."""
    cls, host, where = entry.cls, entry.host, served.namespace.__name__
    if not isinstance(cls, type) or not (host is None or isinstance(host, type)):
        raise MemextError(f"registry: {entry.name!r} of {entry.owner}: target and replaces must name classes")
    taken = getattr(served.namespace, entry.name, cls)
    if taken is not cls:
        raise MemextError(f"registry: {where} already has a {entry.name!r}, of {owner_of(taken)}; {entry.owner} must "
                          "choose another name")
    if host is not None:
        if not issubclass(cls, host):
            raise MemextError(f"registry: {entry.name!r} of {entry.owner} replaces {host.__name__}, and must be a "
                              "subclass of it")
        first = served.table.get(host)
        if first is not None:
            raise MemextError(f"registry: {host.__name__} is already replaced by {first.name!r} of {first.owner}; "
                              f"{entry.name!r} of {entry.owner} must leave `replaces` out")
        served.table[host] = entry
    setattr(served.namespace, entry.name, cls)
