"""One layer as the hardware models see it: a convolution or a matrix product, per sample and evaluation.

All models read a layer as a matrix product of `pixels` rows, `window` columns and `filters` outputs, once per group:
a convolution has a row for each output position, a transposed one for each input position (its filters are then all
places of the kernel), a linear layer for each position it is applied to.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from ..errors import MemextError

__all__ = ["COUNTED", "KINDS", "Layer", "Product", "layer_of", "needed"]

COUNTED = ("conv", "transposed", "linear")
KINDS = (*COUNTED, "pool", "neuron", "other")
_PAIRS = ("kernel", "stride", "padding", "dilation", "output_padding")


class Product(NamedTuple):
    """pixels x window times window x filters, `groups` times."""

    pixels: int
    window: int
    filters: int
    groups: int

    @property
    def macs(self) -> int:
        return self.pixels * self.window * self.filters * self.groups


@dataclass(frozen=True)
class Layer:
    """One row of a LayerTable. Sizes are of one sample; pairs are (vertical, horizontal).

    kind: one of KINDS; only those in COUNTED have synaptic operations. A one-dimensional convolution has height 1.
    height, width: of the input.  evaluations: how often the layer runs for one sample; None: once per time step.
    input_rate: share of input values that are not 0, from 0 to 1; None: not known.
    real_input: the input holds other values than 0 and 1; None: not known.
    weight_sparsity: share of weights that are 0.
    neurons: neurons that take this layer's output; None: every output is one.  neuron_runs: how often they are updated
        for one sample; None: once per time step.  stateless: they keep nothing between time steps (T-RevSNN's).
    groups_sharing: groups of channels that share a membrane (EfficientLIF-Net's C#n).
    membrane: layers with the same name here share a membrane; "": the layer has its own.
    reason: why a layer of kind "other" cannot be counted.
    """

    name: str
    kind: str = "conv"
    height: int = 1
    width: int = 1
    in_channels: int = 1
    out_channels: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    evaluations: int | None = None
    input_rate: float | None = None
    real_input: bool | None = None
    weight_sparsity: float = 0.0
    neurons: int | None = None
    neuron_runs: int | None = None
    stateless: bool = False
    groups_sharing: int = 1
    membrane: str = ""
    reason: str = field(default="", compare=False)

    @property
    def counted(self) -> bool:
        return self.kind in COUNTED

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        found = []
        for i, size in enumerate((self.height, self.width)):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            if self.kind == "transposed":
                found.append((size - 1) * self.stride[i] - 2 * self.padding[i] + reach + self.output_padding[i])
            else:
                found.append((size + 2 * self.padding[i] - reach) // self.stride[i] + 1)
        return tuple(found)

    @property
    def outputs(self) -> int:
        return self.out_channels * math.prod(self.output)

    @property
    def inputs(self) -> int:
        return self.in_channels * self.height * self.width

    @property
    def weights(self) -> int:
        return self.product.window * self.product.filters * self.groups if self.counted else 0

    @property
    def product(self) -> Product:
        """The layer as a matrix product, with its own padding."""
        per_group, filters = self.in_channels // self.groups, self.out_channels // self.groups
        if self.kind == "transposed":
            return Product(self.height * self.width, per_group, filters * math.prod(self.kernel), self.groups)
        return Product(math.prod(self.output), per_group * math.prod(self.kernel), filters, self.groups)

    @property
    def macs(self) -> int:
        """Multiply-adds of one evaluation of one sample: FLOPs, one for each, as the papers count them."""
        return self.product.macs if self.counted else 0

    @property
    def spiking(self) -> int:
        """Neurons behind the layer."""
        return self.neurons if self.neurons is not None else (self.outputs if self.counted else 0)

    @property
    def membranes(self) -> int:
        """Membranes of one sample, where no other layer shares them."""
        return 0 if self.stateless else self.spiking // self.groups_sharing

    def runs(self, time_steps: int, table_steps: int | None = None) -> int:
        """Evaluations for one sample in `time_steps` steps, of a layer that was counted in `table_steps`: a layer that
        ran once for all steps still does, and one that ran k times a step does so."""
        return _times(self.evaluations, time_steps, table_steps)

    def updates(self, time_steps: int, table_steps: int | None = None) -> int:
        """How often each neuron behind the layer is updated, likewise."""
        return _times(self.neuron_runs, time_steps, table_steps)


def _times(counted: int | None, time_steps: int, table_steps: int | None) -> int:
    if counted is None:
        return time_steps
    if table_steps in (None, time_steps) or counted < table_steps:
        return counted
    return counted * time_steps // table_steps


def needed(kind: str) -> tuple[str, ...]:
    """What a row of this kind has to say."""
    channels = ("in_channels", "out_channels") if kind in COUNTED else ()
    return (("height", "width", "kernel") if kind in ("conv", "transposed") else ()) + channels


def layer_of(row: Mapping[str, object], number: int) -> Layer:
    """A row written by hand, or read from a file, as a Layer.  Raises MemextError: what is wrong, and in which row."""
    where = f"LayerTable: row {number}"
    if not isinstance(row, Mapping):
        raise MemextError(f"{where} is {type(row).__name__}; allowed: a mapping such as {{'height': 32, 'width': 32, "
                          "'kernel': 3, 'in_channels': 3, 'out_channels': 64, 'padding': 1}")
    values = {key: value for key, value in row.items() if value is not None and value != ""}
    if {"in_features", "out_features"} & values.keys():
        values["in_channels"] = values.pop("in_features", None)
        values["out_channels"] = values.pop("out_features", None)
        values.setdefault("kind", "linear")
    known = {f.name for f in fields(Layer)}
    for key in values.keys() - known:
        raise MemextError(f"{where} has {key!r}; allowed: {', '.join(sorted(known))}, or in_features and out_features")
    values.setdefault("name", f"layer{number}")
    kind = values.setdefault("kind", "conv")
    if kind not in KINDS:
        raise MemextError(f"{where} is of kind {kind!r}; allowed: {', '.join(KINDS)}")
    for key in needed(kind):
        if values.get(key) is None:
            raise MemextError(f"{where} ({values['name']}) has no {key!r}; a row of kind {kind!r} needs it")
    for key in _PAIRS:
        if key in values:
            values[key] = _pair(where, key, values[key])
    layer = Layer(**values)
    _check(where, layer)
    return layer


def _pair(where: str, key: str, value) -> tuple[int, int]:
    found = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(found) != 2:
        raise MemextError(f"{where}: {key} is {value!r}; allowed: a whole number, or a pair (vertical, horizontal)")
    return found


def _check(where: str, layer: Layer) -> None:
    where = f"{where} ({layer.name})"
    least = {"padding": 0, "output_padding": 0, "neurons": 0}
    for key in ("height", "width", "in_channels", "out_channels", "groups", "groups_sharing", "evaluations", "neurons",
                "neuron_runs", *_PAIRS):
        value = getattr(layer, key)
        for one in value if key in _PAIRS else (value,):
            if one is None and key in ("evaluations", "neurons", "neuron_runs"):
                continue
            if isinstance(one, bool) or not isinstance(one, int) or one < least.get(key, 1):
                raise MemextError(f"{where}: {key} is {value!r}; allowed: whole numbers from {least.get(key, 1)} on")
    for key in ("input_rate", "weight_sparsity"):
        value = getattr(layer, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1):
            raise MemextError(f"{where}: {key} is {value!r}; allowed: from 0 to 1")
    if layer.real_input not in (None, True, False):
        raise MemextError(f"{where}: real_input is {layer.real_input!r}; allowed: True, False or None (not known)")
    if not isinstance(layer.stateless, bool):
        raise MemextError(f"{where}: stateless is {layer.stateless!r}; allowed: True or False")
    if layer.counted and (layer.in_channels % layer.groups or layer.out_channels % layer.groups):
        raise MemextError(f"{where}: {layer.in_channels} input and {layer.out_channels} output channels cannot be "
                          f"divided into {layer.groups} groups")
    if layer.counted and min(layer.output) < 1:
        raise MemextError(f"{where}: kernel {layer.kernel} does not fit into {layer.height}x{layer.width} with padding "
                          f"{layer.padding}; the output would be {layer.output}")
    if layer.spiking % layer.groups_sharing:
        raise MemextError(f"{where}: {layer.spiking} neurons cannot be divided into groups_sharing="
                          f"{layer.groups_sharing}")
