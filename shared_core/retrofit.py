"""Changing a built model in place and back: the machinery that the adapters share.

`Retrofitter(framework, methods)` gives an adapter its retrofit, restore and report. A method is a function
`method(framework, net, **options) -> Plan` that looks and decides, and changes nothing; the machinery then makes all
its changes or none. `exchange_neurons` is the method "neuron"; an adapter's table can hold any number of others.
"""
from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import NoReturn

from torch import nn

from . import registry
from ._entering import Change, Entered, class_name, entered, leave, plain_type, put_back, why_left
from .errors import MemextError

__all__ = ["Framework", "Plan", "Report", "Retrofitter", "classify", "exchange_neurons", "neuron_changes",
           "refuse_unchanged"]

ALREADY = "already ours"
REPORT = "_retrofitted_by_memext"  # {framework: {method: {module name: (class, why it was left)}}}, at the net's root
ALTERNATIVES = frozenset(("neuron", "compress", "recompute", "auto"))  # one at a time; other methods add to them
NOTES = "_decided_by_memext"  # {framework: [what the method decided]}, there, too
NOT_CHANGED = "it can be changed, and is not: it was added or restored after the last retrofit, or is not part of it"
ORDER = "retrofit first, then torch.compile, DistributedDataParallel or fully_shard"


@dataclass
class Report:
    """What is changed. changed: (module name, class before, class now); skipped: (module name, class, reason).

    method: how; several methods are separated by commas.  notes: what the methods have to say of the runs so far.
    """

    method: str
    changed: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self):
        lines = [f"retrofit {self.method!r}: {len(self.changed)} changed, {len(self.skipped)} left as they are"]
        lines += [f"  {name}: {before} -> {now}" if before != now else f"  {name}: {before}, its forward"
                  for name, before, now in self.changed]
        lines += [f"  {name}: {kind} left: {reason}" for name, kind, reason in self.skipped]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass
class Plan:
    """What a method wants to do: changes to make, and (module, reason) for what it looked at and leaves.

    notes: what it decided, for the report.
    """

    changes: list[Change] = field(default_factory=list)
    skipped: list[tuple[str, nn.Module, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Framework:
    """What the machinery must know of a framework.

    name: as registered (its import name).  package: our adapter, for messages.
    is_neuron(module): is it a neuron of the framework at all, convertible or not?
    overrides(cls, host): names of the equation methods that a subclass of `host` defines in another way.
    equations: methods that may also be replaced on one object, and then are not ours to replace.
    joined(modules), left(modules): called with the modules after they were changed, and before they are changed back.
    touched(net): called after either with every module of the net.
    layers: stateless layers of the framework's own that "compress" and "recompute" change, and what they become.
    """

    name: str
    package: str
    is_neuron: Callable[[nn.Module], bool]
    overrides: Callable[[type, type], list[str]]
    equations: tuple[str, ...] = ("forward",)
    joined: Callable[[Sequence[nn.Module]], None] = lambda modules: None
    left: Callable[[Sequence[nn.Module]], None] = lambda modules: None
    touched: Callable[[Sequence[nn.Module]], None] = lambda modules: None
    layers: Mapping[type, type] = field(default_factory=dict)


class Retrofitter:
    """retrofit, restore and report for one framework; `methods` is the live table of what retrofit offers."""

    def __init__(self, framework: Framework, methods: Mapping[str, Callable[..., Plan]]):
        self.framework, self.methods = framework, methods

    def retrofit(self, net: nn.Module, method: str = "neuron", **options) -> nn.Module:
        """Changes `net` in place by `method` and returns it; see report(net) for what became of each neuron.

        Module objects, parameters, buffers, state_dict keys, hooks, training mode, device and dtype stay. A net inside
        torch.compile or DistributedDataParallel is looked through. Calling it again is fine; of "neuron", "compress",
        "recompute" and "auto", the new one takes the place of the one before.
        Raises MemextError: not a module; a sharded model; unknown method or option; nothing to change. The model is
        then as it was, as it is when a change fails half-way.
        """
        where = f"{self.framework.package}.retrofit"
        root = self._root(net, where)
        find, undone = self._method(method, options, where), []
        kept = root.__dict__.get(REPORT, {})  # replaced, not filled: a shallow copy of the net shares it
        mine = kept.get(self.framework.name, {})
        if method in ALTERNATIVES and ALTERNATIVES.intersection(mine) - {method}:
            undone = self._set_back(root, ALTERNATIVES.intersection(mine))
            mine = {name: left for name, left in mine.items() if name not in ALTERNATIVES}
        try:
            plan = find(root)
            self._make(plan, method, where)
        except MemextError:
            for module, record, values in reversed(undone):
                Change("", module, record.ours, values).apply(self.framework.name, record.method)
            if undone:
                self.framework.joined([module for module, _, _ in undone])
            raise
        self.framework.touched(list(net.modules()))
        left = {name: (plain_type(module).__name__, why) for name, module, why in plan.skipped}
        root.__dict__[REPORT] = {**kept, self.framework.name: {**mine, method: left}}
        self._note(root, plan.notes)
        return net

    def _make(self, plan: Plan, method: str, where: str) -> None:
        """Makes all changes of a plan, or none."""
        done: list[tuple[nn.Module, type]] = []
        try:
            for change in plan.changes:
                done.append(change.apply(self.framework.name, method))
            self.framework.joined([change.module for change in plan.changes])
        except Exception as problem:
            self.framework.left([module for module, _ in done])
            for module, was in reversed(done):
                put_back(module, was)
            at = plan.changes[len(done)].name if len(done) < len(plan.changes) else "the framework's own records"
            raise MemextError(f"{where}: changing {at!r} failed ({type(problem).__name__}: {problem}); the "
                              "model is as it was") from problem

    def _set_back(self, root: nn.Module, methods: frozenset[str]) -> list[tuple[nn.Module, Entered, dict]]:
        """Undoes what retrofits of this root by these methods did; returns what it takes to do it again, newest first.

        What was retrofitted as a part of the net, and what cannot be undone, stays.
        """
        undone = []
        for module in root.modules():
            while (records := entered(module)) and records[-1].method in methods and self._entered(module) \
                    and self._why_left(module) is None:
                values = {name: module.__dict__[name] for name in records[-1].attributes if name in module.__dict__}
                self.framework.left([module])
                undone.append((module, leave(module), values))
        return undone

    def restore(self, net: nn.Module) -> nn.Module:
        """Undoes this framework's retrofits of `net` in place, and returns it: the same objects with their old classes.

        What another framework's adapter changed in it stays changed. Raises MemextError, and changes nothing, if
        nothing of it was retrofitted, or if somebody changed the class of a retrofitted module afterwards.
        """
        where = f"{self.framework.package}.restore"
        root = self._root(net, where, sharded=True)
        modules = [(name, module) for name, module in root.named_modules() if self._entered(module)]
        if not modules:
            raise MemextError(f"{where}: nothing in this {type(root).__name__} was retrofitted by "
                              f"{self.framework.package}")
        for name, module in modules:
            reason = self._why_left(module)
            if reason is not None:
                raise MemextError(f"{where}: {_shown(name)!r} cannot be restored: {reason}; undo that change first")
        self.framework.left([module for _, module in modules])
        for _, module in modules:
            while self._entered(module):
                leave(module)
        for module in root.modules():
            self._forget_report(module)
        self.framework.touched(list(net.modules()))
        return net

    def report(self, net: nn.Module) -> Report:
        """What of `net` is changed at present, by whichever retrofits, and why its other neurons are not.

        A module stands under its first name in `net`. Neurons that substitute made ours count as changed.
        Raises MemextError if nothing of it is changed and retrofit was not called on it, or it was restored.
        """
        where = f"{self.framework.package}.report"
        root = self._root(net, where, sharded=True)
        noted = root.__dict__.get(REPORT, {}).get(self.framework.name, {})
        modules = [(_shown(name), module, self._entered(module)) for name, module in root.named_modules()]
        methods = list(dict.fromkeys([*noted, *(record.method for *_, records in modules for record in records)]))
        if not methods:
            raise MemextError(f"{where}: this {type(root).__name__} was not retrofitted by {self.framework.package}")
        found = Report(", ".join(methods))
        for name, module, records in modules:
            kind = plain_type(module).__name__
            if records and self._why_left(module) is None:
                found.changed.append((name, records[0].before.__name__, records[-1].ours.__name__))
                continue
            reasons = [why for left in noted.values() for seen, why in [left.get(name, (None, None))] if seen == kind]
            if records:
                reasons = [f"it was retrofitted, but {self._why_left(module)}"]
            elif not reasons and "neuron" in methods and self.framework.is_neuron(module):
                reasons = [classify(self.framework, module)[1] or NOT_CHANGED]
            if reasons:
                found.skipped.append((name, kind, "; ".join(dict.fromkeys(reasons))))
        told = {id(value): value for _, module, records in modules for record in records
                for value in map(module.__dict__.get, record.attributes) if hasattr(value, "notes")}
        said = root.__dict__.get(NOTES, {}).get(self.framework.name, [])
        found.notes = list(dict.fromkeys([*said, *(note for value in told.values() for note in value.notes())]))
        return found

    def _entered(self, module: nn.Module) -> list[Entered]:
        return [record for record in entered(module) if record.framework == self.framework.name]

    def _why_left(self, module: nn.Module) -> str | None:
        """None if what was done to it for this framework can be undone now, else what stands in the way."""
        theirs = entered(module)[-1].framework
        if theirs != self.framework.name:
            return f"the adapter of {theirs} changed it afterwards"
        return why_left(module)

    def _forget_report(self, module: nn.Module) -> None:
        kept = {name: notes for name, notes in module.__dict__.pop(REPORT, {}).items() if name != self.framework.name}
        if kept:
            module.__dict__[REPORT] = kept
        self._note(module, [])

    def _note(self, module: nn.Module, notes: list[str]) -> None:
        known = {name: said for name, said in module.__dict__.pop(NOTES, {}).items() if name != self.framework.name}
        if known or notes:
            module.__dict__[NOTES] = {**known, **({self.framework.name: notes} if notes else {})}

    def _root(self, net: nn.Module, where: str, sharded: bool = False) -> nn.Module:
        """The user's own module inside torch.compile, DistributedDataParallel and their like."""
        if not isinstance(net, nn.Module):
            raise MemextError(f"{where}: net is {type(net).__name__}; a torch.nn.Module is needed")
        for name, module in net.named_modules():
            if not sharded and _is_sharded(module):
                raise MemextError(f"{where}: {_shown(name)!r} ({type(module).__name__}) is already sharded; {ORDER}")
        while True:
            inner = "_orig_mod" if "_orig_mod" in net._modules else "module" if _is_wrapper(net) else None
            if inner is None:
                return net
            net = net._modules[inner]

    def _method(self, name: str, options: dict, where: str) -> Callable[[nn.Module], Plan]:
        if not isinstance(name, str) or name not in self.methods:
            raise MemextError(f"{where}: method is {name!r}; allowed: {', '.join(map(repr, self.methods))}")
        method = self.methods[name]
        allowed = list(inspect.signature(method).parameters)[2:]
        unknown = sorted(set(options) - set(allowed))
        if unknown:
            raise MemextError(f"{where}: method {name!r} has no option {', '.join(map(repr, unknown))}; allowed: "
                              f"{', '.join(allowed) or 'none'}")
        return lambda net: method(self.framework, net, **options)


# ---- the method "neuron" ----

def exchange_neurons(framework: Framework, net: nn.Module, skip: Sequence[str] | None = None) -> Plan:
    """Our neurons instead of the framework's: each neuron object becomes an instance of our subclass of its class.

    skip: names of modules to leave ("layer1.lif"), or patterns ("layer1.*"), as a list; None for none.
    Raises MemextError if a name in `skip` fits no neuron, or if the net has no neuron that can be changed.
    """
    plan, already = neuron_changes(framework, net, skip)
    if not plan.changes and not already:
        refuse_unchanged(framework, net, plan)
    return plan


def refuse_unchanged(framework: Framework, net: nn.Module, plan: Plan) -> NoReturn:
    raise MemextError(f"{framework.package}.retrofit: no neuron of this {type(net).__name__} can be changed. "
                      f"{_whats_there(plan, net)}")


def neuron_changes(framework: Framework, net: nn.Module, skip: Sequence[str] | None) -> tuple[Plan, int]:
    """As exchange_neurons, without a refusal where nothing is to be changed: (plan, number that are ours already)."""
    where = f"{framework.package}.retrofit"
    skip = () if skip is None else skip
    if not isinstance(skip, list | tuple | set | frozenset) or not all(isinstance(pattern, str) for pattern in skip):
        raise MemextError(f"{where}: skip is {skip!r}; a list of names or patterns is needed, e.g. ['layer1.*']")
    found = list(_named_neurons(framework, net))
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for names, _ in found for name in names):
            raise MemextError(f"{where}: skip={pattern!r} fits no neuron; the neurons are: "
                              f"{', '.join(_shown(names[0]) for names, _ in found) or 'none'}")
    plan, already, table = Plan(), 0, registry.replacements(framework.name)
    for names, module in found:
        ours, reason = classify(framework, module, table)
        if ours is None:
            already += reason == ALREADY
        elif any(fnmatchcase(name, pattern) for name in names for pattern in skip):
            reason = "named in skip"
        if reason is None:
            plan.changes.append(Change(_shown(names[0]), module, ours))
        else:
            plan.skipped.append((_shown(names[0]), module, reason))
    return plan, already


def classify(framework: Framework, module: nn.Module, table: Mapping[type, type] | None = None
             ) -> tuple[type | None, str | None]:
    """(our class, None) if this neuron can become ours, else (None, why not).

    table: registry.replacements of the framework, for callers with many neurons: looking it up takes milliseconds.
    """
    cls, table = plain_type(module), registry.replacements(framework.name) if table is None else table
    if entered(module) and why_left(module):
        return None, f"it was retrofitted, but {why_left(module)}"
    if entered(module) or any(issubclass(cls, ours) for ours in table.values()):
        return None, ALREADY
    host = next((base for base in cls.__mro__ if base in table), None)
    if host is None:
        return None, (f"there is no memory-efficient version of it; there is one of {_listed(table)}; leave it, or add "
                      "one (docs/add_a_neuron.md)")
    replaced = [name for name in framework.equations if name in module.__dict__]
    if replaced:
        return None, f"{', '.join(replaced)} was replaced on this object, and would run instead of ours"
    if cls is not host:
        changed = framework.overrides(cls, host)
        if changed:
            return None, (f"it overrides {', '.join(changed)} of {host.__name__}, so it computes something else; "
                          "describe it as a neuron of its own (docs/add_a_neuron.md)")
        if cls.__reduce_ex__ is not host.__reduce_ex__ or cls.__reduce__ is not host.__reduce__:
            return None, "it defines how it is pickled, which would lose the change"
    return table[host], None


def _named_neurons(framework: Framework, net: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """Every neuron once, with all the names it has in the net."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if framework.is_neuron(module):
            names.setdefault(module, []).append(name)
    return ((found, module) for module, found in names.items())


def _whats_there(plan: Plan, net: nn.Module) -> str:
    if plan.skipped:
        return "Found: " + "; ".join(f"{name} ({plain_type(module).__name__}): {reason}"
                                     for name, module, reason in plan.skipped)
    count = Counter(class_name(type(module)) for module in net.modules())
    held = ", ".join(f"{n} {name}" for name, n in sorted(count.items()))
    return (f"It has no neuron of the framework, only: {held}. For neurons written by hand there is "
            "shared_core.checkpoint.checkpoint_modules; `memext explain` says what it would save")


# ---- helpers ----

def _is_wrapper(module: nn.Module) -> bool:
    """DistributedDataParallel, DataParallel, AveragedModel: Torch's modules that hold one `module` and add nothing."""
    return type(module).__module__.startswith("torch.") and list(module._modules) == ["module"]


def _is_sharded(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("torch.distributed.fsdp") for cls in type(module).__mro__)


def _listed(table: Mapping[type, type]) -> str:
    return ", ".join(sorted(host.__name__ for host in table)) or "no class (is the adapter imported?)"


def _shown(name: str) -> str:
    return name or "(the model itself)"
