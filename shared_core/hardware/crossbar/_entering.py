"""Which layers of a net go on crossbars, why others cannot, and the way there and back."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from ..._entering import Change, class_name, entered, leave, plain_type, put_back, why_left
from ..._plan_copy import unwrapped
from ...errors import MemextError
from .modules import LAYERS, STATE, Placed
from .report import CrossbarLayer, CrossbarReport

if TYPE_CHECKING:
    from .settings import Crossbar

__all__ = ["enter", "leave_all", "report"]

WHO = "Crossbar"
SKIPPED = "_memext_not_on_crossbars"  # at the net's root
_OTHERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Conv3d, nn.Bilinear, nn.MultiheadAttention)


def enter(crossbar: Crossbar, net: nn.Module, skip: Sequence[str]) -> nn.Module:
    root = _root(net, "convert")
    changes, skipped = _plan(crossbar, root, skip)
    done: list[tuple[nn.Module, type]] = []
    try:
        for change in changes:
            done.append(change.apply(WHO, "crossbar"))
    except Exception as problem:
        for module, was in reversed(done):
            put_back(module, was)
        raise MemextError(f"Crossbar.convert: changing {changes[len(done)].name!r} failed ({type(problem).__name__}: "
                          f"{problem}); the model is as it was") from problem
    root.__dict__[SKIPPED] = tuple(skipped)
    return net


def leave_all(net: nn.Module) -> nn.Module:
    root = _root(net, "restore")
    modules = _converted(root)
    if not modules:
        raise MemextError(f"Crossbar.restore: no layer of this {type(root).__name__} is on crossbars")
    for name, module in modules:
        last = entered(module)[-1]
        if last.framework != WHO:
            raise MemextError(f"Crossbar.restore: {name!r} was changed afterwards, by {last.framework}'s "
                              f"{last.method!r}; undo that first")
        if why_left(module):
            raise MemextError(f"Crossbar.restore: {name!r} cannot be taken back: {why_left(module)}; undo that first")
    for _, module in modules:
        leave(module)
    for module in root.modules():
        module.__dict__.pop(SKIPPED, None)
    return net


def report(net: nn.Module) -> CrossbarReport:
    root = _root(net, "report")
    modules = _converted(root)
    if not modules:
        raise MemextError(f"Crossbar.report: no layer of this {type(root).__name__} is on crossbars")
    rows = []
    for name, module in modules:
        placed: Placed = module.__dict__[STATE]
        written = placed.program
        first = next(record.before for record in entered(module))
        rows.append(CrossbarLayer(name, first.__name__, written and written.crossbars, written and written.off_share,
                                  placed.reads, placed.digital))
    return CrossbarReport(tuple(rows), root.__dict__.get(SKIPPED, ()))


# ---- which layers ----

def _plan(crossbar: Crossbar, root: nn.Module, skip: Sequence[str]) -> tuple[list[Change], list[str]]:
    if isinstance(skip, str) or not all(isinstance(pattern, str) for pattern in skip):
        raise MemextError(f"Crossbar.convert: skip is {skip!r}; a list of names or patterns is needed, e.g. ['head']")
    found = list(_layers(root))
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for names, _ in found for name in names):
            raise MemextError(f"Crossbar.convert: skip={pattern!r} fits no layer; the layers are: "
                              f"{', '.join(names[0] for names, _ in found) or 'none'}")
    inside = {id(part): name for name, m in root.named_modules() if isinstance(m, nn.MultiheadAttention)
              for part in m.modules() if part is not m}
    changes, skipped = [], []
    for names, module in found:
        name = names[0]
        if any(fnmatchcase(each, pattern) for each in names for pattern in skip):
            skipped.append(f"{name}: named in skip")
        elif id(module) in inside:
            continue  # its attention says what is to be said
        elif isinstance(module, nn.Linear) and not crossbar.linear:
            skipped.append(f"{name}: linear=False")
        else:
            reason = _why_not(module)
            if reason is not None:
                raise MemextError(f"Crossbar.convert: {name!r} ({plain_type(module).__name__}): {reason}")
            changes.append(Change(name, module, LAYERS[_host(module)], {STATE: Placed(crossbar, name)}))
    if not changes:
        raise MemextError(f"Crossbar.convert: no layer of this {type(root).__name__} can be put on crossbars; it has "
                          f"{'; '.join(skipped) or 'no convolution and no linear layer'}")
    return changes, skipped


def _layers(root: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """Every layer that multiplies by weights once, with all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, (*LAYERS, *_OTHERS)):
            names.setdefault(module, []).append(name or "(the model itself)")
    return ((found, module) for module, found in names.items())


def _host(module: nn.Module) -> type | None:
    return next((base for base in plain_type(module).__mro__ if base in LAYERS), None)


def _why_not(module: nn.Module) -> str | None:
    """None if this layer can be put on crossbars, else why not, and what to do."""
    leave_it = "name it in skip to leave it in software"
    host = _host(module)
    if STATE in module.__dict__:
        return "it is on crossbars already; call Crossbar.restore(net) first"
    if host is None:
        return f"a {type(module).__name__} is not simulated; {leave_it}"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it has no weights yet; run the net once, then convert"
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return f"its forward was replaced on this object, and would run instead; {leave_it}"
    if entered(module) and why_left(module):
        return f"{why_left(module)}; {leave_it}"
    other = _own_operator(plain_type(module), host)
    if other is not None:
        return f"{class_name(other)} computes something of its own; {leave_it}"
    return None


def _own_operator(cls: type, host: type) -> type | None:
    """The class that would not arrive at our method: its forward calls neither super() nor, of a convolution,
    self._conv_forward. None if there is none."""
    for base in cls.__mro__[:cls.__mro__.index(host)]:
        if base.__module__.startswith("shared_core."):
            continue
        codes = [getattr(vars(base).get(name), "__code__", None) for name in ("forward", "_conv_forward", "_forward")]
        codes = [code for code in codes if code is not None]
        if not codes:
            continue
        if "_conv_forward" in codes[0].co_names and "_conv_forward" not in vars(base):
            return None  # what it calls is ours
        if not any("__class__" in code.co_freevars for code in codes):
            return base
    return None


# ---- helpers ----

def _root(net: nn.Module, what: str) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise MemextError(f"Crossbar.{what}: net is {type(net).__name__}; a torch.nn.Module is needed")
    return unwrapped(net)


def _converted(root: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name or "(the model itself)", module) for name, module in root.named_modules()
            if any(record.framework == WHO for record in entered(module))]
