"""Layers on crossbars: ideal ones are the quantised layer, bit by bit; others the circuit, solved number by number."""
import itertools

import numpy as np
import pytest
import torch
from crossbar_reference import broken, digital, layer
from torch import nn

from shared_core.errors import MemextError
from shared_core.hardware import Cell, Crossbar, encode_weights
from shared_core.hardware.crossbar import _program, _reads, encoding, modules

LAYERS = {
    "conv": (lambda: nn.Conv2d(20, 12, 3), (3, 20, 9, 8)),
    "stride, uneven": (lambda: nn.Conv2d(20, 12, (3, 5), stride=(2, 3), padding=(2, 1)), (3, 20, 9, 8)),
    "groups, dilation, same": (lambda: nn.Conv2d(20, 12, 3, groups=2, dilation=2, padding="same"), (2, 20, 9, 8)),
    "even kernel, same": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", bias=False), (2, 4, 9, 8)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 8)),
    "circular": (lambda: nn.Conv2d(20, 12, 3, groups=4, padding=2, padding_mode="circular"), (2, 20, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(70, 70, 3, groups=70, padding=1, bias=False), (2, 70, 5, 5)),
    "1x1, one image": (lambda: nn.Conv2d(130, 5, 1), (130, 4, 3)),
    "1-D": (lambda: nn.Conv1d(20, 12, 5, stride=2, padding=2, groups=2), (3, 20, 17)),
    "1-D reflect": (lambda: nn.Conv1d(5, 7, 3, padding=2, padding_mode="reflect", dilation=2), (3, 5, 17)),
    "1-D one sample": (lambda: nn.Conv1d(5, 7, 3), (5, 17)),
    "linear": (lambda: nn.Linear(150, 11), (5, 150)),
    "linear, sequence": (lambda: nn.Linear(30, 11, bias=False), (4, 3, 2, 30)),
    "linear, one sample": (lambda: nn.Linear(30, 11), (30,)),
}
SETTINGS = [Crossbar(encoding=e, adc_bits=adc, rows=rows, scale=scale, cell=Cell(bits), size=size)
            for e, adc, rows, scale, bits, size in itertools.product(
                encoding.ENCODINGS, (None, 8), ("packed", "kernel"), ("layer", "channel"), (1, 2), (64, 7))
            if not (e == "signed-top" and bits > 1)]


def on(module: nn.Module, crossbar: Crossbar) -> nn.Module:
    crossbar.convert(nn.Sequential(module))
    return module


def spikes(*shape, dtype=torch.float32, rate=0.3):
    return (torch.rand(shape) < rate).to(dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ideal_crossbars_are_the_quantised_layer(name, dtype):
    """Exactly, in every encoding and with every way of slicing; an ADC of a step of 1 and enough range changes nothing.
    Whole numbers below 2^24 are exact in float32."""
    make, shape = LAYERS[name]
    module, x = make().to(dtype), spikes(*shape, dtype=dtype)
    settings = SETTINGS if name == "conv" else SETTINGS[::3] if dtype == torch.float32 else SETTINGS[::7]
    for crossbar in settings:
        held = encode_weights(module.weight, crossbar.bits, scale=crossbar.scale)
        wanted = digital(module, x, held.q, held.scale)
        found = on(module, crossbar)(x)
        assert torch.equal(found, wanted) and found.dtype == dtype and not found.requires_grad, crossbar
        Crossbar.restore(module)
    assert wanted.abs().max() > 0.1


CIRCUITS = [Crossbar(size=4, wire_ohm=20.0), Crossbar(size=4, wire_ohm=1000.0, adc_bits=4),
            Crossbar(size=4, wire_ohm=20.0, encoding="twos-complement", adc_bits=1),
            Crossbar(size=3, bits=6, wire_ohm=5.0, cell=Cell(3, 1e4, 5e4), adc_bits=5, adc_max="column"),
            Crossbar(size=16, wire_ohm=20.0, cell=Cell(4, off_ohm=1e8, parallel=True), adc_bits=3, adc_max=30.0),
            Crossbar(size=4, wire_ohm=20.0, reference=False, scale="fixed", shift=3)]


def check_circuits(convert=lambda crossbar, module: on(module, crossbar)):
    """1e-9: the layer's float64 sums against those of the loops; ADC steps are far larger."""
    generator = torch.Generator().manual_seed(1)
    for crossbar in CIRCUITS:
        module = nn.Linear(10, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            module.weight.copy_(torch.rand(3, 10, generator=generator) * 1.9 - 0.95)
        x = (torch.rand(12, 10, generator=generator) < 0.6).double()
        wanted = np.stack([layer(module.weight.detach().numpy(), row.numpy(), crossbar) for row in x])
        found = convert(crossbar, module)(x).numpy()
        Crossbar.restore(module)
        assert np.abs(found - wanted).max() < 1e-9, crossbar
        ideal = on(module, Crossbar(scale=crossbar.scale, bits=crossbar.bits, shift=crossbar.shift))(x).numpy()
        assert np.abs(found - ideal).max() > 1e-3, "the circuit makes no difference, so nothing is tested"


def test_each_number_by_itself():
    """The column equation in dense matrices, bit slices, tiles, the reference column, the ADC and DIFF, in loops."""
    check_circuits()


@pytest.mark.parametrize("module, old, new", [
    (_reads, "current.round_()", "current"),
    (_reads, ".clamp_(-highest if signed else 0, highest)", ""),
    (_program, "* (crossbar.adc_step or 1)", ""),
    (_program, "mean[:, :, :used] / crossbar.adc_step", "mean[:, :, :used]"),
    (_reads, "total += torch.bmm(program.offset", "total += 0 * torch.bmm(program.offset"),
    (_reads, "(digital * program.factors.view(-1, 1, 1))", "digital"),
    (_program, "seen = effective_conductance(g, crossbar.wire_ohm)", "seen = effective_conductance(g, 0)"),
    (_program, "seen - effective_conductance(off, crossbar.wire_ohm)", "seen - 0 * effective_conductance(off, 0)"),
    (_program, "(index, (0, -inputs % size), value=inputs)", "(index, (-inputs % size, 0), value=inputs)"),
    (_program, "merged = merged + offset.transpose(1, 2)", "pass"),
    (_program, "merged + factor * mean", "merged + mean"),
    (encoding, "offset = -(2 ** used) * negative.long()", "offset = -(2 ** used) * (~negative).long()"),
    (encoding, "return least\n    if not", "return least + 1\n    if not"),
    (encoding, "torch.round(w / step).long(), step\n\n", "torch.floor(w / step).long(), step\n\n"),
], ids=lambda v: v.strip()[:40] if isinstance(v, str) else "")
def test_a_broken_simulation_is_noticed(module, old, new, monkeypatch):
    made = broken(module, old, new)
    if module is _reads:
        monkeypatch.setattr(modules, "_reads", made)
    elif module is _program:
        monkeypatch.setattr(modules, "written", made.written)
    else:
        monkeypatch.setattr(_program, "encode_weights", made.encode_weights)
    with pytest.raises(AssertionError):
        check_circuits()


def test_large_layers_are_read_in_parts(monkeypatch):
    """Nothing depends on how many reads are made at a time."""
    for make, shape in (LAYERS["stride, uneven"], LAYERS["linear"], LAYERS["1-D"]):
        module, x = make(), spikes(*shape)
        crossbar = Crossbar(wire_ohm=3.0, adc_bits=5, variation=0.1)
        whole = on(module, crossbar)(x)
        monkeypatch.setattr(modules, "CHUNK", 1)
        assert torch.equal(module(x), whole)
        monkeypatch.undo()


def test_rows_of_a_kernel():
    """rows="kernel": a crossbar has the channels of one place in the kernel, so nine of them here."""
    x, module = spikes(1, 20, 5, 5), nn.Conv2d(20, 4, 3)
    found = []
    for rows, crossbars in (("packed", 6), ("kernel", 9)):  # 180 inputs on 32 rows, 12 columns; 9 times 20 inputs
        found.append(on(module, Crossbar(rows=rows, wire_ohm=5.0, size=32))(x))
        assert Crossbar.report(module).layers[0].crossbars == crossbars
        Crossbar.restore(module)
    assert not torch.equal(*found)


def test_other_inputs_than_spikes():
    """digital: the quantised layer; analog: proportional voltages, so the same on ideal crossbars; refuse."""
    x, module = torch.randn(3, 30, dtype=torch.float64), nn.Linear(30, 5, dtype=torch.float64)
    held = encode_weights(module.weight)
    wanted = digital(module, x, held.q, held.scale)
    for inputs, reads in (("digital", 0), ("analog", 1)):
        for adc in (None, 20):
            crossbar = Crossbar(inputs=inputs, adc_bits=adc, adc_max=None if adc is None else "column")
            found = on(module, crossbar)(x)
            # An ADC of 2^20 steps over 64 rows rounds each of 3 slices to 3e-5, which counts up to 4 x scale.
            assert torch.allclose(found, wanted, rtol=0, atol=1e-12 if adc is None or not reads else 2e-4)
            (row,) = Crossbar.report(module).layers
            assert (row.reads, row.digital) == (reads, 1 - reads)
            Crossbar.restore(module)
    assert on(module, Crossbar(inputs="refuse"))((x > 0).double()).shape == (3, 5)
    with pytest.raises(MemextError, match="'0' was given other values than 0 and 1, and inputs is 'refuse'; use"):
        module(x)


def test_half_precision_and_autocast():
    """Computed in float32 and rounded once to what the layer would give."""
    module, x = nn.Linear(30, 5), spikes(4, 30)
    exact = on(module, Crossbar(wire_ohm=2.0))(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), exact.to(torch.bfloat16))
        assert module(x.double()).dtype == torch.float64
    Crossbar.restore(module)
    module = module.half()
    assert on(module, Crossbar(wire_ohm=2.0))(x.half()).dtype == torch.float16


def test_not_contiguous_and_empty():
    module = on(nn.Conv2d(6, 4, 3), Crossbar(adc_bits=6, wire_ohm=1.0))
    x = spikes(2, 6, 8, 7)
    assert torch.equal(module(x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)), module(x))
    assert module(x[:0]).shape == (0, 4, 6, 5)
    assert on(nn.Linear(6, 4), Crossbar(adc_bits=6))(x[:0, :, 0, 0]).shape == (0, 4)
    zero = nn.Linear(6, 4)
    nn.init.zeros_(zero.weight)
    assert torch.equal(on(zero, Crossbar(adc_bits=6))(spikes(2, 6)), zero.bias.detach().expand(2, 4))
