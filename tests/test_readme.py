"""README and guides tell the truth: their programs run, and their tables are those of the result files."""
import contextlib
import io
import re
import subprocess
import sys
import textwrap
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
    pages = [page.read_text() for page in readme.PAGES]
    marked = [mark for text in pages for mark in re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)]
    assert sum(text.count("<!-- end -->") for text in pages) == len(marked)
    assert sorted(name for name, _ in marked) == sorted(make.__name__ for make in readme.MAKERS)
    assert {name for name, table in marked if table} == set(readme.TABLES)
    for text in pages:
        assert readme.refreshed(text) == text, "run python -m benchmarks.readme"


def _programs() -> list:
    """Those that are whole: they import torch."""
    return [pytest.param(program, id=f"{page.name}-{i}") for page in readme.PAGES
            for i, program in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
            if re.search(r"^import torch", program, re.MULTILINE) and page.name != "README.md"]


@pytest.mark.parametrize("program", _programs())
def test_whole_programs_of_the_guides_run(program):
    if "sj_memext.compat" in program:  # changes the framework for the rest of the process
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(program, "guide", "exec"), {})


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_programs_are_python(page):
    for program in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(textwrap.dedent(program), page.name, "exec")


def test_what_it_points_to_exists():
    for path in re.findall(r"^    (shared_core/\S+|docs/\S+)", TEXT, re.MULTILINE):
        assert (ROOT / path).exists(), path
    for page in readme.PAGES:
        for path in re.findall(r"\]\(([\w./]+)\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page.name}: {path}"
