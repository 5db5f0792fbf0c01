"""Small libraries for tests that compile: one neuron, one surrogate, float32; a second or two each instead of minutes.

Chunking, blocks, rows and the C interface around the neuron are those of the package, as are the ids.
"""
from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from shared_core import _build


@dataclass(frozen=True)
class Edit:
    """One change of a kernel source: inside `file`, between `after` and the next line that holds only "};"."""

    file: str
    after: str  # "": the whole file
    old: str
    new: str

    def apply(self, kernels: Path) -> None:
        path = kernels / self.file
        head, found, rest = path.read_text().partition(self.after) if self.after else ("", "all", path.read_text())
        body, end, tail = rest.partition("\n};\n") if self.after else (rest, "", "")
        assert found and self.old in body, f"{self.file}: {self.after!r} no longer holds {self.old!r}; write it anew"
        path.write_text(head + (self.after and found) + body.replace(self.old, self.new) + end + tail)


def library(folder: Path, neuron: str, edits: tuple[Edit, ...] = (), extra: tuple[str, ...] = ("-O1", "-fno-openmp")
            ) -> Path:
    """Compile the kernels with `edits` for one neuron into `folder`, which must not exist yet."""
    shutil.copytree(_build.KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits:
        edit.apply(folder)
    _only(folder / "neuron.h", "MEMEXT_NEURONS", neuron)
    _only(folder / "surrogate.h", "MEMEXT_SURROGATES", "ATan")
    Edit("cpu.cpp", "", "compute == kFloat64 ? pick<N, double>(variant, All{}) :",
         "compute == kFloat64 ? Entries{} :").apply(folder)
    return _build.build_one("base", folder, extra=list(extra), source=folder / "cpu.cpp")


def _only(header: Path, table: str, name: str) -> None:
    """Leave one entry of an X-macro, with its id."""
    text = header.read_text()
    listed = re.search(rf"#define {table}\(X\)(?:.*\\\n)+.*\n", text)
    entry = listed and re.search(rf"X\(\d+, {name}\b[^)]*\)", listed[0])
    assert entry, f"{header.name}: no {name} in {table}"
    header.write_text(text.replace(listed[0], f"#define {table}(X) {entry[0]}\n"))
