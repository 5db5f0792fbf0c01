"""LayerTable: the only input of every hardware model. Collected from a network (_collect.py), or written by hand."""
from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..errors import MemextError
from ..report import text_table
from ._layers import Layer, layer_of, needed

__all__ = ["LayerTable"]

_DEFAULTS = {f.name: f.default for f in fields(Layer)}


@dataclass(frozen=True)
class LayerTable:
    """layers: in the order in which they run.  T: time steps of one sample; None: to be given to the model.
    notes: what could not be seen while the table was collected, in words."""

    layers: tuple[Layer, ...]
    T: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping], T: int | None = None, notes: Sequence[str] = ()) -> LayerTable:
        """A table of a network that nobody has built.

        rows: mappings with height, width, kernel, in_channels, out_channels, and where they are not 1 (padding: 0)
            stride, padding, dilation, groups; or in_features and out_features of a linear layer; and what else a
            Layer has. kernel, stride and the like: one number, or (vertical, horizontal).
        T: time steps.  Raises MemextError: no row; a row that is no layer (which, and why).
        """
        if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence) or not rows:
            raise MemextError(f"LayerTable.from_rows: rows is {rows!r:.80}; a list of at least one mapping is needed")
        if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < 1):
            raise MemextError(f"LayerTable.from_rows: T is {T!r}; allowed: a number of time steps from 1 on, or None")
        layers = tuple(layer_of(row, number) for number, row in enumerate(rows))
        seen: set[str] = set()
        for layer in layers:
            if layer.name in seen:
                raise MemextError(f"LayerTable.from_rows: two rows are called {layer.name!r}; give each its own name")
            seen.add(layer.name)
        return cls(layers, T, tuple(notes))

    def rows(self) -> list[dict]:
        """The layers as mappings that from_rows takes; what may be left out, and is at its default, is left out."""
        return [{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(layer).items()
                 if value != _DEFAULTS[key] or key in ("name", "kind", *needed(layer.kind))} for layer in self.layers]

    def with_sharing(self, channels: int = 1, layers: Sequence[Sequence[str]] = ()) -> LayerTable:
        """The same layers with membranes shared: `channels` groups of channels everywhere (C#n), and between the layers
        of each list in `layers`, by name (L). Raises MemextError: a name not in the table, unequal activations."""
        by_name, owner = {layer.name: layer for layer in self.layers}, {}
        for number, names in enumerate(layers):
            sizes = set()
            for name in names:
                if name not in by_name:
                    raise MemextError(f"LayerTable.with_sharing: there is no layer {name!r}; there are: "
                                      f"{', '.join(by_name)}")
                owner[name] = f"shared{number}"
                sizes.add(by_name[name].spiking)
            if len(sizes) > 1:
                raise MemextError(f"LayerTable.with_sharing: {', '.join(names)} have {sorted(sizes)} neurons, and only "
                                  "layers of equal activation size can share a membrane")
        changed = [{**row, "membrane": owner.get(row["name"], ""), "groups_sharing": channels if layer.spiking else 1}
                   for row, layer in zip(self.rows(), self.layers)]
        return LayerTable.from_rows(changed, self.T, self.notes)

    def with_neurons(self, names: Sequence[str]) -> LayerTable:
        """The same layers, with neurons only behind those named."""
        return replace(self, layers=tuple(layer if layer.name in names else replace(layer, neurons=0)
                                          for layer in self.layers))

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    # ---- files ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        return {"T": self.T, "notes": list(self.notes), "layers": self.rows()}

    @classmethod
    def from_dict(cls, values: Mapping) -> LayerTable:
        if not isinstance(values, Mapping) or not isinstance(values.get("layers"), list):
            raise MemextError("LayerTable: the JSON holds no list 'layers'; allowed: {\"T\": 4, \"layers\": [{...}, "
                              "...]} as to_json writes it, or that list alone")
        return cls.from_rows(values["layers"], values.get("T"), values.get("notes", ()))

    def to_json(self, path: str | Path) -> None:
        """Writes the table to `path`. Raises OSError where that cannot be written."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> LayerTable:
        """Raises MemextError: the file cannot be read, is no JSON, or holds no table."""
        try:
            values = json.loads(_read(path))
        except json.JSONDecodeError as error:
            raise MemextError(f"LayerTable: {path} is no JSON: {error}") from error
        return cls.from_dict({"layers": values} if isinstance(values, list) else values)

    def to_csv(self, path: str | Path) -> None:
        """A line per layer; T is a column of its own, pairs are written 3x3. Notes are left out: JSON has them."""
        rows = self.rows()
        columns = [name for name in _DEFAULTS if any(name in row for row in rows)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, "T"])
        for row in rows:
            writer.writerow([*(_cell(row.get(name)) for name in columns), _cell(self.T)])
        Path(path).write_text(text.getvalue(), encoding="utf-8")

    @classmethod
    def from_csv(cls, path: str | Path) -> LayerTable:
        """A header line with the names that from_rows knows, and T; empty cells are defaults.

        Raises MemextError: the file cannot be read, or a cell is no value of its column.
        """
        rows = list(csv.DictReader(io.StringIO(_read(path))))
        steps = {row.pop("T", None) or None for row in rows} or {None}
        if len(steps) > 1:
            raise MemextError(f"LayerTable: {path}: column T holds {sorted(map(str, steps))}; it must be the same in "
                              "all lines")
        if any(None in row for row in rows):
            raise MemextError(f"LayerTable: {path}: a line has more cells than the header")
        parsed = [{key: _parsed(path, key, cell) for key, cell in row.items() if cell} for row in rows]
        (T,) = steps
        return cls.from_rows(parsed, None if T is None else _parsed(path, "T", T))

    # ---- for a reader --------------------------------------------------------------------------------------------

    def table(self) -> str:
        """A line per layer."""
        rows = []
        for layer in self.layers:
            shape = f"{layer.in_channels}x{layer.height}x{layer.width}"
            sharing = "no membrane" if layer.stateless else "+".join(
                part for part in (layer.membrane, f"C#{layer.groups_sharing}" if layer.groups_sharing > 1 else "")
                if part)
            shape = shape if layer.counted else "-"
            rows.append((layer.name, layer.kind, shape, "x".join(map(str, layer.kernel)) if layer.counted else "-",
                         layer.out_channels if layer.counted else "-", layer.macs or "-",
                         (layer.evaluations or self.T or "T") if layer.counted else "-",
                         "-" if layer.input_rate is None else f"{layer.input_rate:.4f}",
                         f"{layer.weight_sparsity:.3f}" if layer.counted else "-", layer.spiking, sharing or "-"))
        header = ("layer", "kind", "input", "kernel", "out", "MACs", "runs", "input rate", "weights 0", "neurons",
                  "sharing")
        return "\n".join([text_table(rows, header), *(f"note: {note}" for note in self.notes)])


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MemextError(f"LayerTable: {path} cannot be read: {type(error).__name__}: {error}") from error


def _cell(value) -> str:
    if value is None:
        return ""
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _parsed(path: str | Path, key: str, cell: str):
    if key in ("name", "kind", "membrane", "reason"):
        return cell
    if key in ("real_input", "stateless") and cell in ("True", "False"):
        return cell == "True"
    try:
        if key in ("input_rate", "weight_sparsity"):
            return float(cell)
        return [int(part) for part in cell.split("x")] if "x" in cell else int(cell)
    except ValueError:
        raise MemextError(f"LayerTable: {path}: {key} is {cell!r}; allowed: a number, pairs as 3x3") from None
