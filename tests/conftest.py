"""What every test shares: fixed seeds, reasons for skipped markers, and a hypothesis profile that repeats itself."""
import importlib.util

import pytest
import torch
from hypothesis import HealthCheck, settings

# derandomize: the same examples on every run, so that a red build is red again on a second look. No deadline: shared
# machines are slow at times, and slowness is not what these tests are about.
settings.register_profile("memext", derandomize=True, deadline=None, max_examples=50,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memext")


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(20240229)


def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "needs CuPy (pip install 'memext[cuda12]' or '[cuda13]')"
    return None


def pytest_collection_modifyitems(items):
    reason = _no_gpu()
    for item in items:
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
