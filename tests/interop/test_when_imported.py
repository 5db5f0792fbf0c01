"""The exporters are told of our classes when they are imported: then, once, and without importing them."""
import subprocess
import sys

import pytest

from shared_core._when_imported import when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A package on the path whose module fails to import once, if told to."""
    package = tmp_path / "slow_part"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("import builtins\nif getattr(builtins, 'slow_part_fails', False):\n"
                                     "    raise ImportError('not there')\nvalue = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield "slow_part.part"
    sys.meta_path[:] = finders
    for name in ("slow_part", "slow_part.part"):
        sys.modules.pop(name, None)


def test_it_waits_for_the_import(module):
    seen = []
    when_imported(module, lambda m: seen.append(m.value))
    assert seen == [] and module not in sys.modules
    __import__(module)
    assert seen == [1]
    __import__(module)
    assert seen == [1]


def test_what_is_imported_already_is_told_at_once(module):
    __import__(module)
    seen = []
    when_imported(module, lambda m: seen.append(m.__name__))
    assert seen == [module]


def test_two_may_wait_and_both_are_served_in_their_order(module):
    seen = []
    when_imported(module, lambda m: seen.append("first"))
    when_imported(module, lambda m: seen.append("second"))
    __import__(module)
    assert seen == ["first", "second"]


def test_a_failed_import_counts_for_nothing(module, monkeypatch):
    import builtins

    seen = []
    when_imported(module, lambda m: seen.append(m.value))
    monkeypatch.setattr(builtins, "slow_part_fails", True, raising=False)
    with pytest.raises(ImportError, match="not there"):
        __import__(module)
    assert seen == []
    monkeypatch.undo()
    sys.path.insert(0, str(sys.modules["slow_part"].__path__[0]).rsplit("/", 1)[0])
    try:
        __import__(module)
    finally:
        del sys.path[0]
    assert seen == [1]


def test_a_module_that_has_changed_is_imported_with_a_warning(module):
    when_imported(module, lambda m: m.no_longer_there)
    with pytest.warns(RuntimeWarning, match=r"slow_part.part is not the module that memext knows \(AttributeError: .*"):
        __import__(module)
    with pytest.warns(RuntimeWarning, match="compare what it makes of a net"):
        when_imported(module, lambda m: m.no_longer_there)
    assert sys.modules[module].value == 1


def test_a_module_that_does_not_exist_is_missed_in_python_s_words():
    finders = list(sys.meta_path)
    when_imported("no_such_module_anywhere", pytest.fail)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        __import__("no_such_module_anywhere")
    sys.meta_path[:] = finders


@pytest.mark.slow
def test_importing_us_imports_no_exporter_and_no_data_set():
    """`spikingjelly.datasets` needs torchaudio, the exporters NIR."""
    program = ("import sys, sj_memext, snntorch_memext\n"
               "names = ['nir', 'nirtorch', 'h5py', 'torchaudio', 'tonic', 'spikingjelly.datasets',\n"
               "         'snntorch.export_nir']\n"
               "print([name for name in names if name in sys.modules])")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and found.stdout.strip().endswith("[]"), found.stdout + found.stderr
