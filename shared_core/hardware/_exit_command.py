"""The second run of `memext energy --compare`, which may be early exit: exits=0.6,0.2,0.1,0.1 or threshold=0.1."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..errors import MemextError
from ._exit_report import exit_costs
from .report import Costs, costs
from .table import LayerTable

__all__ = ["SAME", "Exits", "exits_of", "other_run"]

SAME = "same"


class Exits(NamedTuple):
    """shares: of samples that stop at step 1, 2, ...  tables: of each step; None: that of all steps."""

    shares: tuple[float, ...]
    tables: Mapping[int, LayerTable] | None = None


def exits_of(text: str) -> Exits:
    """"0.6,0.2,0.1,0.1", or the path of a file that ExitReport.to_json has written.  Raises ValueError, MemextError."""
    if not text.endswith(".json"):
        return Exits(tuple(float(part) for part in text.split(",")))
    try:
        with open(text, encoding="utf-8") as file:
            values = json.load(file)
        return Exits(tuple(values["exits"]), {int(t): LayerTable.from_dict(table)
                                              for t, table in values["tables"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, MemextError):
            raise
        raise MemextError(f"exits={text!r}: no report of early exit ({type(error).__name__}: {error}); allowed: a file "
                          "that ExitReport.to_json has written") from error


def other_run(table: LayerTable, first: str, second: str, settings: dict, read: Callable, build: Callable) -> Costs:
    """table: of the target `first`.  second: "same", a file or a model.  settings: of costs(), "exits", "threshold".

    read: makes a table from a file or model.  build: with threshold=, makes Exits from a model.
    """
    given = {key: settings.pop(key) for key in ("exits", "threshold") if settings.get(key) is not None}
    if len(given) == 2:
        raise MemextError("--compare: both exits= and threshold= are given; either says who stops when")
    if "threshold" in given:
        target = first if second == SAME else second
        if target.endswith((".csv", ".json")):
            raise MemextError(f"--compare: threshold={given['threshold']}: {target} is a table, and early exit needs a "
                              "model and its sample; of a table say who stops when: exits=0.6,0.2,0.1,0.1")
        exits = build(target, threshold=given["threshold"])
    else:
        exits = given.get("exits")
        table = table if second == SAME else read(second)
    if exits is None:
        return costs(table, **settings)
    settings.pop("T", None)  # each share has its own
    return exit_costs(exits.tables or table, exits.shares, **settings)
