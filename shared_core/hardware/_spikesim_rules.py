"""Where the published SpikeSim tool counts in a way that its papers, or sense, does not support: one rule each.

CORRECTED_SPIKESIM is what this package does by default. With PUBLISHED_SPIKESIM the figures are that tool's, to the
digit.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..errors import MemextError
from ._layers import Layer

__all__ = ["COMPAT_SPIKESIM", "CORRECTED_SPIKESIM", "PUBLISHED_SPIKESIM", "SpikeSimRules", "no_latency",
           "outside_of_the_tool", "spikesim_rules_of"]

_MOST_LAYERS, LIF_LAYERS = 12, 5


@dataclass(frozen=True)
class SpikeSimRules:
    """pasted_sram: an SRAM crossbar's energy, in pJ, is the number of its area in um^2.
    lif_of_first_five: the LIF module holds the membranes of the first five layers only.
    sharing_unknown: every output of a layer has a membrane of its own, also where the table says otherwise.
    latency_per_output: a PE-cycle for each output value, rather than for each output position.
    latency_cut: the three quarters of a layer that the next one waits for are cut to whole cycles, not rounded up.
    growing_pes: no latency where a layer has fewer PEs than the one before it (the tool refuses).
    fractional_pes: no latency where no layer fills a PE (the tool never returns).
    twelve_layers: no latency for more than 12 layers (the tool fails).
    convolutions_only: no linear layers, groups, transposed convolutions, and one kernel size for the whole network.
    fixed_crossbar_area: a crossbar of any size has the area of one of 64 x 64.
    """

    pasted_sram: bool
    lif_of_first_five: bool
    sharing_unknown: bool
    latency_per_output: bool
    latency_cut: bool
    growing_pes: bool
    fractional_pes: bool
    twelve_layers: bool
    convolutions_only: bool
    fixed_crossbar_area: bool


_NAMES = tuple(f.name for f in fields(SpikeSimRules))
PUBLISHED_SPIKESIM = SpikeSimRules(**dict.fromkeys(_NAMES, True))
CORRECTED_SPIKESIM = SpikeSimRules(**dict.fromkeys(_NAMES, False))
COMPAT_SPIKESIM = {"spikesim": PUBLISHED_SPIKESIM}


def spikesim_rules_of(compat: str | None, rules: SpikeSimRules | None) -> SpikeSimRules:
    if rules is not None and compat is not None:
        raise MemextError(f"spikesim: both compat={compat!r} and rules= were given; pass one of them")
    if isinstance(rules, SpikeSimRules):
        return rules
    if rules is not None or compat not in (None, *COMPAT_SPIKESIM):
        raise MemextError(f"spikesim: compat is {compat!r} and rules {rules!r:.60}; allowed: compat=None (corrected), "
                          f"{', '.join(map(repr, COMPAT_SPIKESIM))}, or "
                          f"rules=dataclasses.replace(CORRECTED_SPIKESIM, ...) of {', '.join(_NAMES)}")
    return CORRECTED_SPIKESIM if compat is None else COMPAT_SPIKESIM[compat]


def outside_of_the_tool(layers: Sequence[Layer]) -> dict[str, str]:
    """Layers that the published tool has no notion of: {name: why}."""
    kernels = Counter(layer.kernel for layer in layers if layer.kind == "conv")
    usual = kernels.most_common(1)[0][0] if kernels else None
    found = {}
    for layer in layers:
        odd = [what for what, is_odd in (
            ("linear layers", layer.kind == "linear"), ("transposed convolution", layer.kind == "transposed"),
            ("neurons without a layer", layer.kind == "neuron"), ("groups", layer.groups > 1),
            ("kernel but one for the whole network", layer.kind == "conv" and layer.kernel != usual)) if is_odd]
        if odd:
            found[layer.name] = f"the published tool knows no {' and no '.join(odd)}"
    return found


def no_latency(names: Sequence[str], pes: Sequence[int], filled: Sequence[float], rules: SpikeSimRules) -> str:
    """Why the published tool gives no latency for these layers, or "".  filled: PEs that the weights would fill."""
    if rules.growing_pes:
        for at in range(1, len(pes)):
            if pes[at] < pes[at - 1]:
                return f"the published tool refuses {names[at]}, which has fewer PEs than {names[at - 1]}"
    if rules.twelve_layers and len(pes) > _MOST_LAYERS:
        return f"the published tool fails beyond {_MOST_LAYERS} layers; there are {len(pes)}"
    if rules.fractional_pes and max(filled) < 1:
        return "the published tool never returns where no layer fills a PE"
    return ""
