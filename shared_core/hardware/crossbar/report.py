"""What of a network is on crossbars."""
from __future__ import annotations

from dataclasses import asdict, dataclass

from ...report import text_table

__all__ = ["CrossbarLayer", "CrossbarReport"]


@dataclass(frozen=True)
class CrossbarLayer:
    """crossbars, off_share: None before the layer ran.  off_share: of its cells, in the state of highest resistance.
    reads: calls that crossbars computed; digital: calls with other inputs than 0 and 1, computed without."""

    name: str
    kind: str
    crossbars: int | None
    off_share: float | None
    reads: int
    digital: int


@dataclass(frozen=True)
class CrossbarReport:
    layers: tuple[CrossbarLayer, ...]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        """A line per layer."""
        rows = [(x.name, x.kind, "-" if x.crossbars is None else x.crossbars,
                 "-" if x.off_share is None else f"{x.off_share:.3f}", x.reads, x.digital) for x in self.layers]
        text = text_table(rows, ("layer", "class", "crossbars", "off share", "reads", "digital"))
        return "\n".join([text, *(f"not on crossbars: {name}" for name in self.skipped)])

    def __str__(self):
        return self.table()
