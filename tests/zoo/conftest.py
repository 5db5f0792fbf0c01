"""SpikingJelly's old names, for the tests of one file at a time: no other test meets what sj_memext.compat changes."""
import pytest


@pytest.fixture(scope="module", autouse=True)
def old_names():
    compat = pytest.importorskip("sj_memext.compat")
    compat.install(quiet=True)
    yield
    compat.uninstall()
