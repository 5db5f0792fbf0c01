"""Cycles and memory accesses of one layer on a systolic array, in closed form.

rows x columns processing elements, one output each. With S pixels, a window of W inputs and K filters per group:

    output-stationary   for k-tile / for pixel-tile / for w in window / parallel(rows pixels x columns filters)
    weight-stationary   for k-tile / for window-tile / load rows x columns weights / for pixel (parallel)
    tick-batch          output-stationary for activations, with weights kept in the array; all time steps of a tile
                        before the next tile, so weights come once, and membranes never leave the array

The first two are run layer by layer in every time step anew: weights are fetched again in each, unless those of the
whole network fit on chip, and every membrane is read and written in each. The counts of tick-batch are those of the
published tool (two SCALE-Sim runs merged: weights of a weight-stationary one, the rest of an output-stationary one).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from ..errors import MemextError
from ._layers import Layer
from ._sata_buffer import Window, fetched
from ._sata_rules import Rules
from ._sata_units import Array

__all__ = ["DATAFLOWS", "Accesses", "Counts", "Run", "count"]

TICK_BATCH, OUTPUT_STATIONARY, WEIGHT_STATIONARY = DATAFLOWS = ("tick-batch", "output-stationary", "weight-stationary")
_HALF_BUFFER = 16384  # of the 32 KB of outputs


@dataclass(frozen=True)
class Accesses:
    """Elements that move, for one sample and all its time steps.  DRAM, then the on-chip buffers (SRAM); spad: what
    the registers of the array take part in, one for each accumulation.  sums: partial sums, written and read.
    membranes: written and read."""

    dram_weights: float = 0
    dram_inputs: float = 0
    dram_outputs: float = 0
    dram_membranes: float = 0
    sram_weights: float = 0
    sram_inputs: float = 0
    sram_outputs: float = 0
    sram_sums: float = 0
    spad: float = 0

    def __add__(self, other: Accesses) -> Accesses:
        return Accesses(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Run(NamedTuple):
    """What does not depend on the layer.  weights_stay: those of the whole network fit on chip."""

    array: Array
    rules: Rules
    dataflow: str
    time_steps: int
    table_steps: int | None
    lif_units: int
    weights_stay: bool


@dataclass(frozen=True)
class Counts:
    """macs: accumulations carried out.  updates: of neurons.  cycles: with lif_cycles, those that waiting for shared
    LIF units adds."""

    cycles: int
    lif_cycles: int
    macs: float
    updates: int
    accesses: Accesses


class _Shape(NamedTuple):
    pixels: int
    window: int
    filters: int  # of one group
    groups: int
    inputs: Window
    macs: int  # of one evaluation
    outputs: int  # written in one evaluation
    neurons: int
    updates: int  # of each neuron


def count(layer: Layer, rate: float, last_of_membrane: bool, run: Run) -> Counts:
    """rate: share of accumulations carried out.  last_of_membrane: no later layer of the table shares this one's."""
    rules = run.rules
    membranes = 0
    updates = layer.updates(run.time_steps, run.table_steps)
    if run.dataflow != TICK_BATCH and last_of_membrane:
        membranes = 2 * layer.membranes * updates
    if layer.kind == "neuron":  # an addition, for example, comes before it
        return Counts(0, 0, 0.0, layer.spiking * updates, Accesses(dram_membranes=membranes))
    shape = (_published(layer) if rules.padding_assumed else _own(layer))._replace(updates=run.time_steps)
    if not rules.neurons_everywhere:
        shape = shape._replace(neurons=layer.spiking, updates=updates)
    if rules.linear_as_3x3 and layer.kind == "linear":  # a 1x1 map with a padding of 1 is 3x3
        shape = shape._replace(macs=9 * shape.macs, neurons=9 * shape.neurons)
    runs = layer.runs(run.time_steps, run.table_steps)
    column_tiles = math.ceil(shape.filters / run.array.columns) * shape.groups
    cycles, lif_cycles = _cycles(shape, column_tiles, runs, run)
    outside = runs if run.dataflow != TICK_BATCH else 1
    moved = _moved(shape, column_tiles, runs, outside, run)
    macs = shape.macs * runs * rate
    return Counts(cycles + lif_cycles, lif_cycles, macs, shape.neurons * shape.updates,
                  Accesses(**moved, dram_membranes=membranes, spad=macs))


def _own(layer: Layer) -> _Shape:
    pixels, window, filters, groups = layer.product
    channels = layer.in_channels // layer.groups
    if layer.kind == "conv":
        inputs = Window((layer.height, layer.width), layer.output, layer.kernel, layer.stride, layer.padding,
                        layer.dilation, channels, groups)
    else:  # every input position is a pixel
        size = (layer.height, layer.width)
        inputs = Window(size, size, (1, 1), (1, 1), (0, 0), (1, 1), channels, groups)
    return _Shape(pixels, window, filters, groups, inputs, layer.macs, layer.outputs, layer.outputs, 0)


def _published(layer: Layer) -> _Shape:
    """No padding for cycles and accesses, and rounded up; a padding of 1, and rounded down, for operations."""
    size = (layer.height, layer.width)
    output = tuple(math.ceil((n - k + s) / s) for n, k, s in zip(size, layer.kernel, layer.stride))
    if min(output) < 1:
        raise MemextError(f"sata: {layer.name}: the published tools take no padding, and the kernel {layer.kernel} "
                          f"does not fit into {layer.height}x{layer.width} without it; use compat=None")
    window = math.prod(layer.kernel) * layer.in_channels
    inputs = Window(size, output, layer.kernel, layer.stride, (0, 0), (1, 1), layer.in_channels, 1)
    operations = math.prod(output) if layer.kind == "linear" else math.prod(
        (n + 2 - k) // s + 1 for n, k, s in zip(size, layer.kernel, layer.stride))
    pixels, filters = math.prod(output), layer.out_channels
    return _Shape(pixels, window, filters, 1, inputs, operations * window * filters, pixels * filters,
                  operations * filters, 0)


def _cycles(shape: _Shape, column_tiles: int, runs: int, run: Run) -> tuple[int, int]:
    rows, columns = run.array.rows, run.array.columns
    row_tiles, window_tiles = math.ceil(shape.pixels / rows), math.ceil(shape.window / rows)
    still = row_tiles * column_tiles * (shape.window + rows + columns - 2)  # output-stationary, one evaluation
    loaded = shape.pixels + 2 * rows + columns - 2  # a tile of weights: loading them, then all pixels
    idle = columns - (shape.filters - (math.ceil(shape.filters / columns) - 1) * columns)
    if run.dataflow == WEIGHT_STATIONARY:
        cycles = window_tiles * column_tiles * loaded * runs
    else:
        cycles = (still - 1 - idle) * runs
    if run.dataflow == TICK_BATCH and run.rules.merged_runs:
        cycles += (window_tiles * column_tiles - 1) * loaded + rows - 1 - max(0, rows - shape.window)
    shared = math.ceil(run.array.elements / run.lif_units)  # neurons that wait for one unit
    stages = row_tiles * column_tiles * shape.updates if shape.neurons else 0
    return cycles, (shared - 1) * stages


def _moved(shape: _Shape, column_tiles: int, runs: int, outside: int, run: Run) -> dict[str, int]:
    """outside: how often a whole layer is run with the time steps outside of it."""
    array, rules = run.array, run.rules
    filters = shape.filters * shape.groups
    row_tiles, weights = math.ceil(shape.pixels / array.rows), shape.window * filters
    window_tiles = math.ceil(shape.window / array.rows)
    streamed = column_tiles * shape.pixels * shape.window
    fresh = fetched(shape.inputs, column_tiles // shape.groups, array.rows, array.buffer_elements)
    input_runs = runs if rules.input_steps else 1
    output_runs = runs if rules.output_steps else 1
    tile = row_tiles * column_tiles * (array.rows + array.columns) if rules.tile_artefacts else 0
    burst = array.columns - 1 if rules.tile_artefacts and shape.outputs > _HALF_BUFFER else 0
    found = dict(sram_weights=weights, sram_inputs=streamed * input_runs,
                 sram_outputs=(shape.outputs + tile) * output_runs, dram_inputs=fresh * input_runs,
                 dram_outputs=(shape.outputs + burst) * (runs if rules.output_dram_steps else 1))
    if run.dataflow == OUTPUT_STATIONARY:
        found["sram_weights"] = row_tiles * weights * runs
    if run.dataflow == WEIGHT_STATIONARY:
        found["sram_weights"] = weights * runs
        found["sram_sums"] = 2 * (window_tiles - 1) * shape.pixels * filters * runs
    # Filters of one tile that do not fit on chip are fetched again for every tile of pixels.
    fits = shape.window * array.columns * array.weight_bits <= 8 * array.weight_buffer_bytes
    again = 1 if fits or run.dataflow != OUTPUT_STATIONARY else row_tiles
    found["dram_weights"] = weights * again * (1 if run.weights_stay else outside)
    return found
