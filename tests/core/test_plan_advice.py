"""What the planner says: what would have to change, whose fault a failure is, which method is not worth its time."""
from __future__ import annotations

import dataclasses
import logging
import re

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from zoo import lif

import sj_memext
from shared_core import coding
from shared_core.chain import neuron as chain_neuron
from shared_core.errors import MemextError
from shared_core.plan import choose, plan

SHAPE = (4, 8, 3, 12, 12)


def small() -> nn.Module:
    net = nn.Sequential(layer.Conv2d(3, 8, 3, padding=1), layer.BatchNorm2d(8), lif(),
                        layer.Conv2d(8, 8, 3, padding=1), lif(), layer.AdaptiveAvgPool2d(1), layer.Flatten(),
                        layer.Linear(8, 10))
    functional.set_step_mode(net, "m")
    return net


def wide() -> nn.Module:
    """All but nothing is activations."""
    net = nn.Sequential(layer.Linear(1000, 1000), lif(), layer.Linear(1000, 10))
    functional.set_step_mode(net, "m")
    return net


WEIGHTS = 4 * (1000 * 1000 + 1000 + 1000 * 10 + 10)
FLAT = (4, 2, 1000)


def advised(net, shape, **options) -> str:
    found = plan(net, shape, **options)
    assert found.chosen is None
    with pytest.raises(MemextError) as refusal:
        choose(found)
    text = " ".join(found.advice)
    assert str(refusal.value) == f"plan: {text}"
    return text


# ---- where the peak is ------------------------------------------------------------------------------------------

def test_the_parameters_alone_do_not_fit():
    text = advised(wide(), FLAT, budget=WEIGHTS // 2, optimizer="adam")
    assert "The parameters alone are 3.86 MiB: a smaller model is needed." in text and "batch" not in text


def test_the_gradients_do_not_fit():
    text = advised(wide(), FLAT, budget=int(1.5 * WEIGHTS), optimizer="adam")
    assert "Parameters and their gradients alone are 7.71 MiB: a smaller model is needed." in text
    assert "optimizer" not in text and "batch" not in text and "T =" not in text


def test_the_optimizer_does_not_fit():
    """AdamW keeps two states and makes two temporaries of the largest parameter; without it the step would fit."""
    budget = int(5 * WEIGHTS)
    text = advised(wide(), FLAT, budget=budget, optimizer="adamw")
    assert re.search(r"what the optimizer keeps and needs in its step are 23\.\d+ MiB without any sample: another "
                     r"optimizer, which keeps less \(sgd without momentum keeps nothing\)", text), text
    assert "fewer time steps or samples cannot help" in text and "T =" not in text
    assert plan(wide(), FLAT, budget=budget, optimizer="sgd").chosen is not None  # the advice is true


def test_one_sample_fits_with_fewer_steps():
    net = small()
    one = plan(net, (1, 1, *SHAPE[2:])).smallest.peak.peak
    text = advised(net, SHAPE, budget=one + 100)
    assert "With it, a batch of 1 and T = 1 instead of 4 fits." in text
    assert "Not even one sample fits" in advised(net, SHAPE, budget=one - 100)


# ---- methods that cannot be planned -----------------------------------------------------------------------------

@pytest.fixture
def add_method(monkeypatch):
    def add(name, change):
        monkeypatch.setitem(sj_memext.retrofit.__self__.methods, name, change)
    return add


def test_the_advice_names_the_methods_that_could_not_be_planned(add_method):
    def broken(framework, net):
        raise MemextError("not today")

    broken.same_network = True
    add_method("broken", broken)
    text = advised(small(), SHAPE, budget="100KiB")
    assert text.startswith("No method that could be planned fits 100.00 KiB (not planned: broken): the smallest peak")


def test_a_failure_of_ours_is_not_blamed_on_the_model(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shape '[3]' is invalid")

    monkeypatch.setattr(coding, "from_step_bits", broken)
    monkeypatch.setattr(chain_neuron, "from_step_bits", broken, raising=False)
    found = plan(small(), SHAPE)
    failed = [m for m in found.methods if m.peak is None]
    assert failed and all(m.method in ("compress", "recompute") for m in failed)
    for m in failed:
        assert m.problem.startswith(f"method {m.name}: memext itself failed on input {SHAPE} of this Sequential")
        assert "invalid" in m.problem and "a fault of memext; please report it" in m.problem
        assert "input's shape right" not in m.problem
    assert found["native"].peak is not None and found["neuron"].peak is not None


def test_a_failure_of_the_model_is_not_ours():
    """Also where a neuron is called in a way that it does not take, from a line of ours."""
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = layer.Conv2d(3, 4, 3, step_mode="m"), lif()

        def forward(self, x):
            self.conv(x)
            return self.lif()

    with pytest.raises(MemextError, match=r"a step of this Wrong on input .* raised TypeError") as refusal:
        plan(Wrong(), SHAPE)
    assert "memext itself" not in str(refusal.value)


def test_a_step_mode_that_was_forgotten():
    net = small()
    functional.set_step_mode(net, "s")
    with pytest.raises(MemextError, match=r"step mode 's', which take one step: .*set_step_mode\(net, 'm'\).*or pass "
                                          r"batch_dim=0 and one step's shape"):
        plan(net, SHAPE)
    with pytest.raises(MemextError) as refusal:  # here it is not the step mode
        plan(small(), (4, 8, 5, 12, 12))
    assert "step mode" not in str(refusal.value)


def test_a_failure_is_told_once(caplog):
    """Torch logs what fails on tensors without memory, with a traceback through its own files."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(caplog.handler)
    try:
        with pytest.raises(MemextError, match="same reduction dim"):
            plan(nn.Linear(6, 5), (2, 7), batch_dim=0)
        assert not caplog.records and not log.disabled
        log.error("as before")
        assert caplog.records
    finally:
        log.removeHandler(caplog.handler)


# ---- what is not worth it, and what the marks mean --------------------------------------------------------------

def test_a_method_that_only_costs_time():
    """3x3x3 products or 8x3x3 are few: "balanced" runs all convolutions again, as "memory" does."""
    found = plan(small(), SHAPE)
    assert found["recompute(memory)"].peak.peak == found["recompute(balanced)"].peak.peak
    assert "recompute(memory) has the same peak as recompute(balanced) here: it would only cost time." in found.notes
    parts = [p for _ in range(4) for p in (layer.Conv2d(32, 32, 3, padding=1), layer.BatchNorm2d(32), lif())]
    many = nn.Sequential(*parts, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(32, 5))
    functional.set_step_mode(many, "m")
    found = plan(many, (4, 8, 32, 12, 12))
    assert found["recompute(memory)"].peak.peak < found["recompute(balanced)"].peak.peak
    assert not any("only cost time" in note for note in found.notes)


def test_the_star():
    free = plan(small(), SHAPE)
    assert "* the smallest peak (there is no budget" in free.table()
    assert "* the fastest that fits" in dataclasses.replace(free, budget=1 << 30).table()
    none = plan(small(), SHAPE, budget=1000)
    assert "*" not in none.table() and "Nothing fits" in none.table() and "Nothing fits" not in none.table(advice=False)


def test_the_ledger_is_off_after_a_failure():
    """A plan that fails leaves the next one, and real calls, as they are."""
    with pytest.raises(MemextError):
        plan(small(), (4, 8, 5, 12, 12))
    net = sj_memext.retrofit(small(), "neuron")
    assert torch.isfinite(net(torch.randn(SHAPE))).all()
