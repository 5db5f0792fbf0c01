"""The peak of a training step under each method, by the planner, and how each is asked for."""
from __future__ import annotations

import importlib
import re
import sys

from torch import nn

from .._plan_methods import NATIVE, Planner
from .._plan_trace import mean_of_outputs
from ..checkpoint import checkpoint_modules, is_checkpointed, restore_modules
from ..errors import MemextError
from ._explain import Expected, Explanation

__all__ = ["expected"]

_PACKAGE = {"spikingjelly": "sj_memext", "snntorch": "snntorch_memext"}


class _Repeated(nn.Module):
    """A training loop that calls a model once a time step."""

    def __init__(self, model: nn.Module, steps: int):
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, *args):
        return [self.model(*args) for _ in range(self.steps)]


def expected(model: nn.Module, samples: tuple, steps: int, found: Explanation, watch) -> list[Expected]:
    """Native first, then what computes the same network; [] where there is nothing to train."""
    if not any(p.requires_grad for p in model.parameters()) or any(x.dim() == 0 for x in samples):
        return []
    if not found.neurons or model.training is False:
        return []
    planner = _planner(model, samples, steps)
    by_hand = {n.name for n in found.neurons if n.framework == "by hand"}
    if planner.adapter is None and by_hand and "spikingjelly" in sys.modules:
        planner.adapter = importlib.import_module("sj_memext.retrofit")  # its layers, without neurons
    rows, base = [], None
    for name, options in [(NATIVE, {}), *(m for m in planner.listed() if m[0] != NATIVE)]:
        if planner.adapter is not None and name == "neuron" and not any(n.ours for n in found.neurons):
            continue
        made = planner.method(name, options)
        peak = None if made.peak is None else made.peak.peak
        base = peak if name == NATIVE else base
        rows.append(Expected(made.name, _call(planner, name, options), peak, _share(peak, base), made.problem))
        if base is None:
            return rows
    return rows + _again(model, samples, steps, by_hand, watch, base)


def _planner(model: nn.Module, samples: tuple, steps: int) -> Planner:
    device = "cuda" if any(p.is_cuda for p in model.parameters()) else "cpu"
    whole = model if steps == 1 else _Repeated(model, steps)
    return Planner(whole, tuple(x.detach() for x in samples), 0, mean_of_outputs, device, None)


def _share(peak: int | None, base: int | None) -> float | None:
    return None if peak is None or not base else peak / base


def _call(planner: Planner, name: str, options: dict) -> str:
    if name == NATIVE or planner.adapter is None:
        return "as it is"
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"{_PACKAGE[planner.adapter.FRAMEWORK.name]}.retrofit(net, {name!r}{more})"


# ---- whole modules run again ----

def _again(model: nn.Module, samples: tuple, steps: int, by_hand: set[str], watch, base: int) -> list[Expected]:
    """checkpoint_modules on blocks that hold neurons written by hand: at the depth that gives the smallest peak."""
    stateful = any(s.by_hand and s.by_hand.startswith("keeps") for s in watch.seen.values())
    if not by_hand or stateful or any(is_checkpointed(m) for m in model.modules()):
        return []
    best = None
    for patterns in _candidates(model, by_hand):
        try:
            checkpoint_modules(model, patterns)
            made = _planner(model, samples, steps).method(NATIVE, {})
        except MemextError as problem:
            made = None
            reason = str(problem)
        finally:
            restore_modules(model)
        call = f"shared_core.checkpoint.checkpoint_modules(net, {patterns!r})"
        peak = None if made is None or made.peak is None else made.peak.peak
        row = Expected("checkpoint", call, peak, _share(peak, base),
                       None if peak is not None else (made.problem if made else reason))
        if best is None or (peak is not None and (best.peak is None or peak < best.peak)):
            best = row
    return [] if best is None else [best]


def _candidates(model: nn.Module, by_hand: set[str]) -> list[list[str]]:
    """For each depth at which lists of modules hold such neurons: the patterns of what is in these lists."""
    depths: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        inside = f"{name}." if name else ""
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not any(n.startswith(inside) for n in by_hand):
            continue
        parts = [inside + i for i, part in module.named_children() if any(True for _ in part.parameters())
                 and any(n.startswith(f"{inside}{i}.") for n in by_hand)]
        if parts:
            depth = inside.count(".")
            depths.setdefault(depth, []).extend([f"{inside}*"] if len(parts) == len(module) else parts)
    single = sorted({re.sub(r"\.?[^.]*$", "", n) for n in by_hand} - {""})
    found = [depths[depth] for depth in sorted(depths)][:2]
    return found or ([single] if single else [])
