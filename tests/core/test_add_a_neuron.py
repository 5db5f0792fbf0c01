"""docs/add_a_neuron.md says what is so: its excerpts are in the files they name, its examples run."""
import re
from pathlib import Path

import pytest
from test_third_party import install, run

pytest.importorskip("spikingjelly")

ROOT = Path(__file__).resolve().parents[2]
# (language, the rest of the info string, the code)
BLOCKS = re.findall(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```$", (ROOT / "docs" / "add_a_neuron.md").read_text(), re.MULTILINE)
EXCERPTS = [(where, code) for _, where, code in BLOCKS if (ROOT / where).is_file()]
EXAMPLES = [code for _, where, code in BLOCKS if where == "run"]


def test_every_block_is_tested():
    named = {where for _, where, _ in BLOCKS}
    assert len(EXCERPTS) >= 6 and len(EXAMPLES) >= 2
    written_out = {"run", "leanqif/nodes.py", "leanqif/entry.py", "with leanqif", ""}
    assert named - {where for where, _ in EXCERPTS} == written_out


@pytest.mark.parametrize("where, code", EXCERPTS, ids=[where for where, _ in EXCERPTS])
def test_excerpts_are_in_the_files(where, code):
    """Line by line, in order; docstrings and more may stand between."""
    lines = iter((ROOT / where).read_text().splitlines())
    for line in filter(None, code.splitlines()):
        assert line in lines, f"{where} has no line {line!r}, or not in this order"


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(code, tmp_path):
    run(tmp_path, "-W", "error::RuntimeWarning", "-c", code)


def test_the_package_of_somebody_else(tmp_path):
    files = {where.partition("/")[2].removesuffix(".py"): code for _, where, code in BLOCKS if "leanqif/" in where}
    point, = [re.search(r'"(\S+)" = "(\S+)"', code).groups() for language, _, code in BLOCKS if language == "toml"]
    install(tmp_path, "leanqif", [" = ".join(point)], **files)
    program, = [code for _, where, code in BLOCKS if where == "with leanqif"]
    done = run(tmp_path, "-c", program)
    assert "slower Torch path: QIF has no struct" in done.stderr
    listed = run(tmp_path, "-m", "shared_core.cli", "neurons").stdout
    row, = [line.split() for line in listed.splitlines() if line.startswith("LeanQIFNode")]
    assert row == ["LeanQIFNode", "leanqif", "spikingjelly", "binary", "reference"]
