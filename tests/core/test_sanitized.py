"""The CPU kernels under the address and undefined-behaviour sanitizers: no byte beside a tensor or a scratch row."""
import os
import re
import subprocess
import sys
from pathlib import Path

import one_neuron
import pytest
from one_neuron import Edit

from shared_core import _build

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # the whole library with sanitizers: over a minute of compiling

SMALL_RUN = """
import torch
from shared_core import functional, surrogate
from shared_core.dynamics import IF
x = torch.randn(40, 128, requires_grad=True)  # a whole chunk: no slack at its end
out = functional.multi_step(IF(), x, surrogate=surrogate.atan(), bits=True, backend="native")
torch.autograd.grad(out.spikes.sum(), x)
print("done")
"""


@pytest.fixture(scope="module")
def preload() -> str:
    """The sanitizer's runtime must come first in the process; libstdc++ with it, or it cannot see Torch's throws."""
    try:
        compiler = _build.compiler()
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        done = subprocess.run([*compiler.split(), f"-print-file-name={name}"], capture_output=True, text=True)
        path = Path(done.stdout.strip())
        if not path.is_absolute() or not path.exists():
            pytest.skip(f"{compiler} has no {name}")
        found.append(str(path.resolve()))
    return ":".join(found)


def sanitized(command: list[str], library: Path, preload: str) -> subprocess.CompletedProcess:
    # Leaks: Python and Torch keep memory to the end on purpose.
    environment = os.environ | {"MEMEXT_LIB": str(library), "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0",
                                "PYTHONPATH": str(TESTS.parent)}
    return subprocess.run([sys.executable, *command], env=environment, cwd=TESTS.parent, capture_output=True, text=True)


def test_the_exactness_tests_pass_under_the_sanitizers(preload, tmp_path):
    library = _build.build_one("base", tmp_path, extra=_build.SANITIZE)
    files = [str(TESTS / "core" / name) for name in ("test_multi_step.py", "test_single_step.py",
                                                   "test_kernel_rebuild.py")]
    done = sanitized(["-m", "pytest", "-q", "-x", "-m", "not slow", "-k", "not shim", "-p", "no:cacheprovider", *files],
                     library, preload)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 100 and "skipped" not in done.stdout, done.stdout[-2000:]


BROKEN = {
    "untouched": (None, ()),
    "one byte of bits too many": ("heap-buffer-overflow", (
        Edit("rows.h", "", "  if (i < n) {\n    unsigned byte = 0;", "  if (i <= n) {\n    out[i / 8 + 1] = 0;\n"
                                                                "    unsigned byte = 0;"),)),
    "one row of scratch too few": ("heap-buffer-overflow", (
        Edit("cpu.cpp", "", "std::min<i64>(c.steps, kBlock) * S::kPerStep;",
             "(std::min<i64>(c.steps, kBlock) - 1) * S::kPerStep;"),)),
    "one input too many": ("heap-buffer-overflow", (
        Edit("cpu.cpp", "", '_Pragma("GCC ivdep") for (i64 i = 0; i < n; i++)',
             '_Pragma("GCC ivdep") for (i64 i = 0; i <= n; i++)'),)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_sanitizers_see_an_access_one_too_far(name, preload, tmp_path):
    said, edits = BROKEN[name]
    library = one_neuron.library(tmp_path / "kernels", "IF", edits, extra=tuple(_build.SANITIZE))
    done = sanitized(["-c", SMALL_RUN], library, preload)
    if said is None:
        assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]
    else:
        assert done.returncode != 0 and said in done.stderr, done.stderr[-3000:]
