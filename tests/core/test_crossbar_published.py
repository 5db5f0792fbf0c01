"""NICE, the published tool: its convolution, and a test for each thing in which the corrected form differs from it."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from crossbar_reference import column_by_equation, layer, ohm_of
from torch import nn
from torch.nn.functional import unfold

from shared_core.errors import MemextError
from shared_core.hardware import NICE, Cell, Crossbar, encode_weights
from shared_core.hardware.crossbar.cells import ON_OHM

IDEAL = Crossbar(scale="fixed")
DENSE = 1e-9  # rounding of the dense matrices of the reference, whose resistances differ by 1e4
OFF = ON_OHM * 4 / 1e8  # current of a cell whose four bits are off, in units


def on(module, crossbar):
    crossbar.convert(nn.Sequential(module))
    return module


def linear(weights, crossbar):
    """As a convolution of one place: NICE leaves linear layers in software."""
    module = nn.Conv2d(len(weights[0]), len(weights), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weights, dtype=torch.float64)[..., None, None])
    return lambda x: on_once(module, crossbar, torch.tensor(x, dtype=torch.float64)[..., None, None])[..., 0, 0]


def on_once(module, crossbar, x):
    try:
        return on(module, crossbar)(x)
    finally:
        Crossbar.restore(module)


def test_its_convolution():
    """out = (I / I_unit - 2^3 * spikes on negative weights) / 2^3, I from the column equation."""
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 2, 3, padding=1, bias=False, dtype=torch.float64)
    x = (torch.rand(2, 3, 4, 4) < 0.5).double()
    with torch.no_grad():
        conv.weight.copy_(torch.rand(2, 3, 3, 3) * 2 - 1)
    found = on(conv, NICE)(x)
    windows = unfold(x, 3, padding=1)
    w = conv.weight.detach().numpy().reshape(2, -1)
    for n in range(2):
        for place in range(16):
            wanted = layer(w, windows[n, :, place].numpy(), replace(NICE, size=27))
            assert np.abs(found[n, :, place // 4, place % 4].numpy() - wanted).max() < DENSE


def test_its_crossbars():
    """A place of the kernel and up to `size` channels each, unused rows off; with the wires that the tool sets to 0."""
    torch.manual_seed(2)
    conv = nn.Conv2d(5, 2, (1, 2), bias=False, dtype=torch.float64)
    x = (torch.rand(1, 5, 1, 2) < 0.7).double()
    crossbar = replace(NICE, size=4, wire_ohm=50.0)
    with torch.no_grad():
        conv.weight.copy_(torch.rand(2, 5, 1, 2) * 2 - 1)
    found = on(conv, crossbar)(x).flatten().numpy()
    assert Crossbar.report(conv).layers[0].crossbars == 4
    for out in range(2):
        q = [[round(v * 8) for v in conv.weight[out, :, 0, place].tolist()] for place in range(2)]
        total = 0.0
        for place in range(2):
            for top in (0, 4):
                part = [value + 8 * (value < 0) for value in q[place][top:top + 4]]
                volt = [*x[0, top:top + 4, 0, place].tolist(), 0, 0, 0][:4]
                ohm = np.array([ohm_of(n, NICE) for n in [*part, 0, 0, 0][:4]])
                total += column_by_equation(ohm, np.array(volt), 50.0) * ON_OHM
            total -= 8 * sum(v for value, v in zip(q[place], x[0, :, 0, place].tolist()) if value < 0)
        assert found[out] == pytest.approx(total / 8, abs=DENSE)


# ---- each difference ----

def test_its_converter_neither_rounds_nor_clips():
    """It only scales: 1 + 2 + 4 + 8 stays 15.0023 / 8, and eight times 7 stays 56 where 4 bits end at 15."""
    assert linear([[1 / 8, 2 / 8, 4 / 8, 8 / 8]], NICE)([[1] * 4]).item() * 8 == pytest.approx(15.0023, abs=5e-5)
    with_adc = replace(NICE, adc_bits=4)
    assert linear([[1 / 8, 2 / 8, 4 / 8, 8 / 8]], with_adc)([[1] * 4]).item() * 8 == 15
    assert linear([[7 / 8] * 8], NICE)([[1] * 8]).item() * 8 == pytest.approx(56, abs=0.01)
    assert linear([[7 / 8] * 8], with_adc)([[1] * 8]).item() * 8 == 15


def test_its_wires_have_no_resistance():
    """5 ohms stand in a function that it does not call."""
    one = linear([[1 / 8] * 64], NICE)([[1] * 64]).item() * 8
    assert one == pytest.approx(64.037, abs=5e-4)
    assert linear([[1 / 8] * 64], replace(NICE, wire_ohm=5.0))([[1] * 64]).item() * 8 == pytest.approx(47.711, abs=5e-4)


def test_the_current_of_cells_that_are_off_stays():
    """Weights of 0 give a current; with a reference column they give 0."""
    x = [[1] * 64]
    assert linear([[0.0] * 64], NICE)(x).item() * 8 == pytest.approx(64 * OFF, rel=1e-9)
    assert linear([[0.0] * 64], replace(NICE, reference=True))(x).item() == 0
    off_200k = replace(NICE, cell=Cell())  # its 1-bit mode: off is a tenth of on
    assert linear([[0.0] * 64], off_200k)(x).item() * 8 == pytest.approx(64 * 19139 / (200e3 - 19139), rel=1e-9)


def test_the_same_is_added_to_negative_weights_everywhere():
    """2^3, though 2^1 is enough for -2: the sum is the same, and more cells are on."""
    weights = torch.tensor([[-2 / 8, -1 / 8, 3 / 8]])
    fixed, least = (encode_weights(weights, scale="fixed", shift=shift) for shift in (3, None))
    assert (fixed.shift, least.shift) == (3, 1) and fixed.off_share < least.off_share
    for crossbar in (IDEAL, replace(IDEAL, shift=3)):
        assert linear(weights.tolist(), crossbar)([[1, 1, 0]]).item() * 8 == -3


def test_its_grid_is_fixed():
    """Steps of 1/8 whatever the weights are: small ones vanish, those beyond 1 are refused. By layer, neither."""
    with pytest.raises(MemextError, match=r"'0': scale='fixed' holds weights from -1 to 1, and the largest here is 3"):
        linear([[3.0, 1.0]], NICE)([[1, 1]])
    assert linear([[3.0, 1.0]], Crossbar())([[1, 1]]).item() == pytest.approx((7 + 2) * 3 / 7, rel=1e-12)
    assert linear([[0.05, 0.02]], NICE)([[1, 1]]).item() == pytest.approx(0, abs=1e-3)
    assert linear([[0.05, 0.02]], Crossbar())([[1, 1]]).item() == pytest.approx(10 * 0.05 / 7, rel=1e-6)


def test_linear_layers_are_software():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Linear(3, 3))
    NICE.convert(net)
    report = Crossbar.report(net)
    assert [row.name for row in report.layers] == ["0"] and report.skipped == ("1: linear=False",)
    replace(NICE, linear=True).convert(Crossbar.restore(net))
    assert [row.name for row in Crossbar.report(net).layers] == ["0", "1"]


def test_it_has_no_noise():
    assert NICE.read_noise == NICE.variation == 0
    module, x = nn.Conv2d(4, 4, 1), torch.ones(1, 4, 1, 1)
    exact = on_once(module, NICE, x)
    for noise in (dict(read_noise=0.1), dict(variation=0.1)):
        assert not torch.equal(on_once(module, replace(NICE, **noise), x), exact)


def test_without_its_differences_it_is_the_quantised_layer():
    """Nothing else differs: all of them set right, the result is that of ideal crossbars, bit by bit."""
    module, x = nn.Conv2d(70, 4, 3), (torch.rand(2, 70, 5, 5) < 0.3).float()
    right = replace(NICE, reference=True, cell=Cell(4), shift=None, scale="layer", linear=True)
    assert torch.equal(on_once(module, right, x), on_once(module, Crossbar(), x))
