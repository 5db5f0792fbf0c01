"""Code of SpikingJelly 0.0.0.0.12 and 0.0.0.0.14, unchanged, gives the values that the old wheels gave.

tests/compat/golden holds what the scenarios returned there (make_golden.py); here they run through sj_memext.compat.
"""
from __future__ import annotations

import json
import warnings
from pathlib import Path

import legacy_grid
import legacy_scenarios_12
import legacy_scenarios_14
import numpy as np
import pytest

from sj_memext import compat

GOLDEN = Path(__file__).parent / "golden"
MODULES = (legacy_scenarios_12, legacy_scenarios_14)
# Spikes, masks and strings are the same. Potentials and gradients: a float32 sum of a few terms in another order.
NEAR = {"rtol": 2e-5, "atol": 2e-6}
# Where an implementation differs by more: gradients through a chain of layers, after an optimizer's steps.
WIDER = {"a_training": {"rtol": 1e-4, "atol": 1e-5}, "recurrent": {"rtol": 1e-4, "atol": 1e-5},
         "models": {"rtol": 1e-3, "atol": 1e-4}}


@pytest.fixture(scope="module", autouse=True)
def old_names():
    compat.install(quiet=True)
    yield
    compat.uninstall()


GRIDS = ("multi_step_if", "multi_step_lif", "multi_step_plif", "single_step", "nodes")
SCENARIOS = {f"{m.RELEASE}-{s.__name__}": (m, s) for m in MODULES for s in m.SCENARIOS}


@pytest.mark.parametrize("scenario", [pytest.param(name, marks=pytest.mark.slow) if s.__name__ == "models" else name
                                      for name, (_, s) in SCENARIOS.items()])
def test_values_of_the_old_release(scenario, monkeypatch):
    check(*SCENARIOS[scenario], monkeypatch, 7)


@pytest.mark.slow  # 20 s: every option of the grid
@pytest.mark.parametrize("scenario", [name for name, (_, s) in SCENARIOS.items() if s.__name__ in GRIDS])
def test_every_value_of_the_grid(scenario, monkeypatch):
    check(*SCENARIOS[scenario], monkeypatch, 1)


def check(module, function, monkeypatch, every):
    monkeypatch.setattr(legacy_grid, "EVERY", every)
    wanted = np.load(GOLDEN / f"sj_{module.RELEASE}.npz")
    wanted = {key.partition("/")[2]: wanted[key] for key in wanted.files if key.startswith(function.__name__ + "/")}
    if function.__name__ in GRIDS:
        wanted = {key: values[::every] for key, values in wanted.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what differs on purpose says so
        got = function()
    assert set(got) == set(wanted) and wanted
    wrong, told = [], 0
    for name, value in got.items():
        if isinstance(value, list):
            if value != json.loads(str(wanted[name])):
                wrong.append(f"{name}: {value} is not {json.loads(str(wanted[name]))}")
            continue
        value = value.detach().numpy()
        told += bool(wanted[name].any())
        if value.shape != wanted[name].shape:
            wrong.append(f"{name}: shape {value.shape} is not {wanted[name].shape}")
        elif wanted[name].dtype == bool:
            if not (value == wanted[name]).all():
                wrong.append(f"{name}: {(value != wanted[name]).sum()} of {value.size} spikes differ")
        elif not np.allclose(value, wanted[name], **WIDER.get(function.__name__, NEAR)):
            wrong.append(f"{name}: {np.abs(value - wanted[name]).max():.2e} apart")
    assert not wrong, "\n".join(wrong)
    assert told, "all values are 0"
