"""How layers lie on SpikeSim's crossbars: PEs, PE-cycles, tiles, membranes.

A PE takes X input and X output channels of one output position in a PE-cycle, all places of the kernel at once. So a
layer needs ceil(in / X) * ceil(out / X) PEs, which work side by side, for a cycle at each output position.

What the published tool lacks is laid out in the same way:

    linear        a kernel of one place, and one position
    groups        blocks along the diagonal: as many groups in a PE as have room both in its rows and in its columns;
                  a group that is larger than a crossbar has PEs of its own
    transposed    a convolution for each *output* position: all places of the kernel are there, and those without an
                  input get no voltage
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ._layers import Layer
from ._spikesim_rules import LIF_LAYERS, SpikeSimRules
from ._spikesim_units import Crossbars, memory_um2, tile_area_um2

__all__ = ["Placed", "latencies", "lif_areas", "place", "tiles_of"]

_WAITED_FOR = 0.75  # of a layer, before the next one starts


class Placed(NamedTuple):
    """places: of the kernel, one crossbar each.  positions: PE-cycles of one evaluation, of each PE.
    filled: PEs that the weights would fill, if these could be divided."""

    pes: int
    places: int
    positions: int
    filled: float


def place(layer: Layer, size: int) -> Placed:
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    together = size // max(inputs, outputs)
    if together:
        pes = math.ceil(layer.groups / together)
    else:
        pes = layer.groups * math.ceil(inputs / size) * math.ceil(outputs / size)
    positions = layer.height * layer.width if layer.kind == "linear" else math.prod(layer.output)
    return Placed(pes, math.prod(layer.kernel), positions, layer.groups * (inputs / size) * (outputs / size))


def tiles_of(placed: Sequence[Placed], hardware: Crossbars, fixed_area: bool) -> tuple[int, float]:
    """Tiles, and their area in um^2. A tile's PEs have all the same number of crossbars; layers of equal kernels share
    tiles."""
    tiles, area = 0, 0.0
    for places in dict.fromkeys(p.places for p in placed):
        count = math.ceil(sum(p.pes for p in placed if p.places == places) / hardware.pes_per_tile)
        tiles += count
        area += count * tile_area_um2(places, hardware, fixed_area)
    return tiles, area


def latencies(layers: list[Layer], placed: Mapping[str, Placed], steps: int, table_steps: int | None,
               rules: SpikeSimRules) -> dict[str, int]:
    """PE-cycles that each layer adds to those before it."""
    found = {}
    for layer in layers:
        one = placed[layer.name].positions * (layer.out_channels if rules.latency_per_output else 1)
        if layer is not layers[-1]:
            one = int(_WAITED_FOR * one) if rules.latency_cut else math.ceil(_WAITED_FOR * one)
        found[layer.name] = one * layer.runs(steps, table_steps)
    return found


def lif_areas(layers: list[Layer], rules: SpikeSimRules) -> tuple[dict[str, float], float]:
    """The LIF module's area by layer, and in all if nothing were shared. A membrane of several layers counts with the
    first of them."""
    found, seen, alone = {}, set(), 0.0
    for number, layer in enumerate(layers):
        neurons = layer.outputs if rules.sharing_unknown else layer.spiking
        if rules.lif_of_first_five and number >= LIF_LAYERS:
            neurons = 0
        own = neurons if rules.sharing_unknown else min(neurons, layer.membranes)
        if not rules.sharing_unknown and layer.membrane in seen:
            own = 0
        seen |= {layer.membrane} - {""}
        found[layer.name], alone = memory_um2(own), alone + memory_um2(neurons)
    return found, alone
