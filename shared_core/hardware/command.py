"""What `memext energy` does, apart from loading models: its options, one run or two, and what is printed."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import MemextError
from ._exit_command import SAME, exits_of, other_run
from ._sata_units import Array
from ._spikesim_units import DEVICES
from .report import TOOLS, Costs, compare, costs
from .sata import DATAFLOWS
from .table import LayerTable

__all__ = ["SAME", "array_of", "energy", "is_file", "options_of"]

_FILES = {".csv": (LayerTable.from_csv, LayerTable.to_csv), ".json": (LayerTable.from_json, LayerTable.to_json)}


def is_file(target: str) -> bool:
    return Path(target).suffix.lower() in _FILES


def energy(args, build: Callable[[str], LayerTable]) -> tuple[dict, str, Callable[[str], None]]:
    """The run that args ask for: (values for JSON, text, how to draw it to a path).

    build: makes a table from module:factory; with threshold=, what early exit does on the sample.
    Raises MemextError: an option that cannot be, a table that is none.
    """
    try:
        return _energy(args, build)
    except MemextError as problem:  # in the spelling of the command
        text = str(problem).replace("pass sparsity=", "pass --sparsity ").replace("pass T=", "pass --time-steps ")
        raise MemextError(text) from problem


def _energy(args, build: Callable[[str], LayerTable]) -> tuple[dict, str, Callable[[str], None]]:
    given = dict(T=args.time_steps, sparsity=args.sparsity, dataflow=args.dataflow, lif_units=args.lif_units,
                 array=args.array, xbar_size=args.xbar_size, device=args.device, compat=args.compat)
    first = {key: value for key, value in options_of(given).items() if value is not None}
    second = None if args.compare is None else {**first, **_settings(args.compare[1:])}
    table = _table(args.target, build)
    if args.table:
        _FILES[_suffix(args.table)][1](table, args.table)
    run = costs(table, **first)
    details = [run.table.table(), *(found.table() for found in run.results.values())] if args.layers else []
    if second is None:
        return run.to_dict(), "\n\n".join([*details, run.text()]), run.plot
    other = other_run(table, args.target, args.compare[0], second, lambda target: _table(target, build), build)
    runs = _named(args, run, other)
    text = "\n\n".join([*details, *(f"{name}\n{found.text()}" for name, found in runs.items()), compare(runs)])
    return {"runs": {name: found.to_dict() for name, found in runs.items()}}, text, lambda path: compare(runs, path)


def options_of(given: dict[str, object]) -> dict[str, object]:
    """Options as text, or as argparse gives them, as the models take them.  Raises MemextError: which one is wrong."""
    readers = {"T": int, "lif_units": int, "sparsity": _sparsity, "dataflow": _one_of(DATAFLOWS), "array": array_of,
               "xbar_size": int, "device": _one_of(tuple(DEVICES)), "compat": _tools, "exits": exits_of,
               "threshold": float}
    allowed = {"T": "a number of time steps", "lif_units": "a number of LIF units", "dataflow": ", ".join(DATAFLOWS),
               "sparsity": "from 0 to 1, or weights", "array": "ROWSxCOLUMNS, e.g. 16x8",
               "xbar_size": "rows and columns of a crossbar", "device": ", ".join(DEVICES),
               "compat": ", ".join(TOOLS) + ", or one for each model: sata-2023,spikesim"}
    allowed |= {"exits": "shares of samples that stop at step 1, 2, ..., as 0.6,0.2,0.1,0.1, or a report of early exit "
                         "(.json)", "threshold": "a number, of early exit on the sample of a model"}
    found = {}
    for key, value in given.items():
        if key not in readers:
            raise MemextError(f"{key!r} is no setting; allowed: {', '.join(readers)}")
        try:
            found[key] = None if value is None else readers[key](value)
        except ValueError as error:
            if isinstance(error, MemextError):
                raise
            raise MemextError(f"{key} is {value!r}; allowed: {allowed[key]}") from error
    return found


def array_of(text: str | Array) -> Array:
    if isinstance(text, Array):
        return text
    rows, _, columns = text.partition("x")
    return Array(rows=int(rows), columns=int(columns))


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in names:
            raise ValueError(value)
        return value
    return read


def _tools(value: str) -> list[str]:
    return [_one_of(TOOLS)(tool) for tool in value.split(",")]


def _sparsity(value: str | float) -> str | float:
    return value if value == "weights" else float(value)


def _settings(parts: list[str]) -> dict[str, object]:
    for part in parts:
        if "=" not in part:
            raise MemextError(f"--compare: {part!r} is no setting; allowed: KEY=VALUE, e.g. lif_units=32")
    return options_of(dict(part.split("=", 1) for part in parts))


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _FILES:
        raise MemextError(f"--table {path!r}: allowed: a path that ends in {' or '.join(_FILES)}")
    return suffix


def _table(target: str, build: Callable[[str], LayerTable]) -> LayerTable:
    return _FILES[_suffix(target)][0](target) if is_file(target) else build(target)


def _named(args, run: Costs, other: Costs) -> dict[str, Costs]:
    second = args.target if args.compare[0] == SAME else args.compare[0]
    settings = " ".join(args.compare[1:])
    return {Path(args.target).name: run, " ".join(filter(None, (Path(second).name, settings))) if settings
            or second != args.target else f"{Path(second).name} (again)": other}
