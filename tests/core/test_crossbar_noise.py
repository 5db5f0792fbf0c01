"""Random deviations: their size, what they are repeated for, and that nobody else's random numbers move."""
import copy
import math
import pickle

import pytest
import torch
from torch import nn

from shared_core.hardware import Cell, Crossbar, encode_weights
from shared_core.hardware.crossbar import effective_conductance

READS = 4000  # the relative standard error of a variance is sqrt(2 / READS) = 2.2 %
FIVE_SIGMA = 5 * math.sqrt(2 / READS)


def layer(inputs=100, outputs=6, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype)


def on(module, crossbar):
    crossbar.convert(nn.Sequential(module))
    return module


def spikes(*shape, rate=0.3):
    return (torch.rand(shape) < rate).double()


@pytest.mark.parametrize("adc", [None, 16], ids=["without ADC", "with"])
@pytest.mark.parametrize("encoding", ["shifted", "pair"])
def test_read_noise_is_that_of_every_cell(adc, encoding):
    """Variance of an output: the sum over columns and active cells of (factor * sigma * G / G_1)^2, cells that are off
    included; mean: the layer without noise. An ADC that could clip the noise at 0 is left room by the biases of 1."""
    module, row = layer(), spikes(100)
    crossbar = Crossbar(read_noise=0.05, encoding=encoding, adc_bits=adc, adc_max="column" if adc else None,
                        reference=adc is None)
    held = encode_weights(module.weight, encoding=encoding)
    per_cell = (0.05 * crossbar.cell.conductance(held.numbers) / crossbar.cell.unit) ** 2
    factors = torch.tensor(held.factors).double()
    wanted = torch.einsum("s,soi,i->o", factors ** 2, per_cell, row) * held.scale ** 2
    exact = on(module, Crossbar(encoding=encoding, reference=crossbar.reference))(row)
    Crossbar.restore(module)
    found = on(module, crossbar)(row.expand(READS, -1))
    assert torch.allclose(found.var(0), wanted, rtol=FIVE_SIGMA, atol=0)
    assert ((found.mean(0) - exact).abs() < 5 * (wanted / READS).sqrt() + 1e-4).all()


@pytest.mark.parametrize("adc", [None, 16], ids=["without ADC", "with"])
def test_read_noise_of_analog_inputs(adc):
    """A cell's current, and so its deviation, goes with the voltage on its row: the variance with its square. An ADC
    has a range below 0 then."""
    module, row = layer(), torch.randn(100, dtype=torch.float64)
    crossbar = Crossbar(read_noise=0.05, inputs="analog", adc_bits=adc, adc_max="column" if adc else None)
    held = encode_weights(module.weight)
    per_cell = (0.05 * crossbar.cell.conductance(held.numbers) / crossbar.cell.unit) ** 2
    wanted = torch.einsum("s,soi,i->o", torch.tensor(held.factors).double() ** 2, per_cell, row ** 2) * held.scale ** 2
    found = on(module, crossbar)(row.expand(READS, -1))
    assert torch.allclose(found.var(0), wanted, rtol=FIVE_SIGMA, atol=0)
    exact = held.q.double() @ row * held.scale
    assert ((found.mean(0) - exact).abs() < 5 * (wanted / READS).sqrt() + 1e-3).all()  # and half a step of the ADC


@pytest.mark.parametrize("wire_ohm, rate, off", [(0.0, 0.3, 0.0), (1.0, 0.3, 0.02), (5.0, 0.3, 0.05), (5.0, 1.0, 0.2)])
def test_read_noise_with_wires_against_noise_in_each_cell(wire_ohm, rate, off):
    """Every cell of every read with a deviation of its own, solved anew. That a cell's voltage falls with the wire's is
    left out: noise comes out too large by `off` at most, the most where all rows are active."""
    numbers, row = torch.randint(0, 2, (64,)), (torch.rand(64) < rate).double()
    g = Cell().conductance(numbers)
    mine = 0.1 * (effective_conductance(g, wire_ohm) * row).norm()
    each = g[:, None] * (1 + 0.1 * torch.randn(64, READS, dtype=torch.float64))
    exact = (effective_conductance(each, wire_ohm) * row[:, None]).sum(0).std()
    assert 1 - FIVE_SIGMA / 2 < mine / exact < 1 + off + FIVE_SIGMA / 2


def test_variation_stays():
    """Drawn once, with the given deviation; the same in every read, in float64 as in float32, and after new weights."""
    module, x = layer(2000, 50), torch.eye(2000, dtype=torch.float64)[:40]
    on(module, Crossbar(variation=0.1, cell=Cell(4, 1e3, 1e9), size=2000))
    found = module(x)
    assert torch.equal(module(x), found)
    held = encode_weights(module.weight, cell=Cell(4, 1e3, 1e9))
    stored = held.numbers[0].t()[:40].double()
    deviation = ((found / held.scale - held.offset.t()[:40]) / stored - 1)[stored > 0]
    assert abs(deviation.std().item() - 0.1) < 5 * 0.1 / math.sqrt(2 * deviation.numel())
    assert abs(deviation.mean().item()) < 5 * 0.1 / math.sqrt(deviation.numel())
    assert torch.allclose(module.float()(x.float()).double(), found, rtol=1e-5, atol=1e-6)
    module.double()
    with torch.no_grad():
        module.weight.neg_()
    changed = module(x)
    assert not torch.equal(changed, found)
    with torch.no_grad():
        module.weight.neg_()
    assert torch.allclose(module(x), found, rtol=1e-5, atol=1e-6)  # the weights went through float32 once


@pytest.mark.parametrize("options", [dict(read_noise=0.1), dict(read_noise=0.1, adc_bits=6), dict(variation=0.1)],
                         ids=str)
def test_seeds(options):
    """The same seed, name and number of reads give the same; another seed, or another layer, does not."""
    net, x = nn.Sequential(layer(64, 64), nn.Threshold(0.0, 0.0), layer(64, 64)), spikes(3, 64)
    other = copy.deepcopy(net)
    before = torch.get_rng_state()
    Crossbar(seed=3, **options).convert(net)
    Crossbar(seed=3, **options).convert(other)
    first = net[0](x)
    assert torch.equal(other[0](x), first) and not torch.equal(net[2](x), first)
    again = net[0](x)
    assert torch.equal(again, first) == ("variation" in options)
    for same in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(same[0](x), again), "a copy goes on where the original was"
    Crossbar.restore(net)
    Crossbar(seed=4, **options).convert(net)
    assert not torch.equal(net[0](x), first)
    assert torch.equal(torch.get_rng_state(), before)
