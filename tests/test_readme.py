"""The README tells the truth: its program prints what it says, and its tables are those of the result files."""
import contextlib
import io
import re
from pathlib import Path

import pytest

from benchmarks import readme

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_program_prints_what_the_readme_shows():
    pytest.importorskip("spikingjelly")
    program = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    shown = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {})
    assert printed.getvalue() == shown


def test_tables_come_from_the_committed_results():
    marked = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
    assert TEXT.count("<!-- end -->") == len(marked) and sorted(name for name, _ in marked) == sorted(
        make.__name__ for make in readme.MAKERS)
    assert {name for name, table in marked if table} == set(readme.TABLES)
    assert readme.refreshed(TEXT) == TEXT, "run python -m benchmarks.readme"


def test_what_it_points_to_exists():
    listed = re.findall(r"^    (shared_core/\S+|docs/\S+)", TEXT, re.MULTILINE)
    for path in [*re.findall(r"\]\(([\w./]+)\)", TEXT), *listed]:
        assert (ROOT / path).exists(), path
