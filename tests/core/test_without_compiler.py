"""Where the compiled kernels are missing, narrow or cannot be built: the package installs, runs, and says so."""
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import ALL_NEURONS, assert_bit_equal, assert_fires, driving, error, name_of, params_for, run

from shared_core import _build, backends
from shared_core.backends import native
from shared_core.dynamics import LIF
from shared_core.errors import MemextError

ROOT = Path(__file__).parents[2]
HOW_TO_BUILD = "python -m shared_core._build"


@pytest.fixture
def reload_library(monkeypatch):
    """Call it after a change of the environment: the library is looked for again, and what was said is forgotten."""
    monkeypatch.delenv("MEMEXT_LIB", raising=False)
    monkeypatch.delenv("MEMEXT_ISA", raising=False)
    monkeypatch.setattr(backends, "_said", set())
    native._library.cache_clear()
    yield native._library.cache_clear
    native._library.cache_clear()


@pytest.fixture
def no_library(monkeypatch, tmp_path, reload_library):
    monkeypatch.setattr(_build, "library_path", lambda isa: tmp_path / f"libmemext_{isa}.so")
    reload_library()


# ---- no libraries -----------------------------------------------------------------------------------------------

def test_without_libraries_the_torch_path_runs_and_says_once_why_and_how_to_build(no_library):
    d = LIF(0.7, -0.5, tau=3.0)
    x = driving(d, 40, (33,))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # Python itself must not be what says it only once
        runs = [run(d, x, None, (), backend="auto") for _ in range(3)]
    assert [w.category for w in said] == [RuntimeWarning]
    text = str(said[0].message)
    assert "slower Torch path" in text and "libmemext_base.so" in text and HOW_TO_BUILD in text
    wanted = run(d, x, None, (), backend="reference")
    assert_fires(wanted.out.spikes)
    for got in runs:
        assert_bit_equal(got.out.spikes, wanted.out.spikes)
        assert_bit_equal(got.out.state[0], wanted.out.state[0])
        assert_bit_equal(got.grads[0], wanted.grads[0])


def test_without_libraries_the_native_backend_asked_for_by_name_is_refused(no_library):
    with pytest.raises(MemextError, match=f"backend='native' was asked for, but no compiled CPU kernels.*"
                                          f"{HOW_TO_BUILD}"):
        run(LIF(), torch.randn(4, 3), None, (), backend="native")


def test_a_library_of_another_version_is_not_called(monkeypatch, tmp_path, reload_library):
    """A struct of another size would be read beyond its end."""
    try:
        compiler = _build.compiler()
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    source = tmp_path / "old.cpp"
    names = ("forward", "backward", "runs_here", "prefer_huge_pages", "call_size")
    source.write_text('extern "C" {' + "".join(f"int memext_{name}() {{ return 8; }}" for name in names) + "}")
    old = tmp_path / "old.so"
    subprocess.run([*compiler.split(), "-shared", "-fPIC", str(source), "-o", str(old)], check=True)
    monkeypatch.setenv("MEMEXT_LIB", str(old))
    reload_library()
    assert "old.so is of another version of this package; reinstall it" in native.unavailable()


# ---- MEMEXT_ISA -------------------------------------------------------------------------------------------------

def test_the_base_instruction_set_gives_the_same_bits(monkeypatch, reload_library):
    widest = native.instruction_set()
    if widest in (None, "base"):
        pytest.skip(f"needs two libraries; the widest one here is {widest}")
    cases = []
    for d in ALL_NEURONS:
        params = params_for(d, (33,))
        x = driving(d, 40, (33,), params)
        cases.append((d, x, params, run(d, x, None, params, backend="native", record=True)))
    monkeypatch.setenv("MEMEXT_ISA", "base")
    reload_library()
    assert native.instruction_set() == "base"
    for d, x, params, wanted in cases:
        got = run(d, x, None, params, backend="native", record=True)
        assert_fires(got.out.spikes)
        assert_bit_equal(got.out.spikes, wanted.out.spikes, name_of(d))
        for a, b in zip((*got.out.state, *got.out.sequence), (*wanted.out.state, *wanted.out.sequence), strict=True):
            assert_bit_equal(a, b, name_of(d))
        for a, b in zip(got.grads, wanted.grads, strict=True):
            assert error(a, b) <= 1e-6, name_of(d)  # surrogates may be approximated in another order per set


def test_an_instruction_set_that_is_not_there_is_named_with_those_that_are(monkeypatch, reload_library):
    if native.unavailable():
        pytest.skip(native.unavailable())
    monkeypatch.setenv("MEMEXT_ISA", "sse9")
    reload_library()
    with pytest.raises(MemextError, match="MEMEXT_ISA='sse9' is not available here; built and able to run: base"):
        run(LIF(), torch.randn(4, 3), None, (), backend="native")
    with pytest.warns(RuntimeWarning, match="MEMEXT_ISA='sse9'.*unset it"):
        run(LIF(), torch.randn(4, 3), None, (), backend="auto")


# ---- building ---------------------------------------------------------------------------------------------------

@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_no_compiler_is_said_clearly(no_compiler, tmp_path):
    with pytest.raises(_build.BuildError, match=r"no C\+\+ compiler found.*\$CXX, c\+\+, g\+\+, clang\+\+.*install"):
        _build.compiler()
    with pytest.raises(_build.BuildError, match=r"no C\+\+ compiler found"):
        _build.build(tmp_path)
    assert not list(tmp_path.glob("*.so*"))


def test_what_the_compiler_printed_is_in_the_error(monkeypatch, tmp_path):
    refusing = tmp_path / "refusing"
    refusing.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("CXX", str(refusing))
    with pytest.raises(_build.BuildError, match=r"refusing -std=c\+\+17 .*cpu\.cpp[^\n]*\nthis compiler is broken"):
        _build.build(tmp_path / "lib")
    assert not list((tmp_path / "lib").iterdir())


@pytest.mark.parametrize("cxx", [None, "false"], ids=["no compiler", "compiler fails"])
def test_the_package_is_built_without_kernels_and_says_so(cxx, tmp_path):
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    if cxx and not shutil.which(cxx):
        pytest.skip(f"needs the program {cxx!r}")
    tree, built, empty = tmp_path / "tree", tmp_path / "built", tmp_path / "empty"
    empty.mkdir()
    for package in ("shared_core", "sj_memext", "snntorch_memext"):  # a copy: setuptools writes into its tree
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, tree)
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "PATH", "PYTHONPATH")}
    environment |= {"PATH": str(empty)} | ({"CXX": shutil.which(cxx)} if cxx else {})
    done = subprocess.run([sys.executable, "setup.py", "build_py", "--build-lib", str(built)], cwd=tree,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memext: installing WITHOUT the compiled CPU kernels" in done.stderr
    assert ("no C++ compiler found" if cxx is None else "cpu.cpp") in done.stderr
    assert (built / "shared_core" / "kernels" / "cpu.cpp").exists() and (built / "sj_memext" / "__init__.py").exists()
    assert not list(built.rglob("*.so"))
