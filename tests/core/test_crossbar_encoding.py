"""Signed weights as numbers for cells: they come back exactly, and which encoding needs how many strong cells."""
import itertools

import pytest
import torch

from shared_core.errors import MemextError
from shared_core.hardware import Cell, Crossbar, encode_weights
from shared_core.hardware.crossbar.encoding import ENCODINGS, quantise


@pytest.mark.parametrize("bits, encoding", list(itertools.product((2, 3, 4, 8), ENCODINGS)))
def test_what_is_stored_is_the_weight(bits, encoding):
    """sum_s factor_s * number_s + offset = q, for every number there is; cells hold what is in them."""
    top = 2 ** (bits - 1) - 1
    every = torch.arange(-top, top + 1).view(-1, 1, 1).double() * 0.3
    for per_cell in (1,) if encoding == "signed-top" else (1, 2, 3, 8):
        cell = Cell(per_cell)
        held = encode_weights(every, bits, encoding, cell=cell)
        assert held.q.flatten().tolist() == list(range(-top, top + 1)) and held.scale == pytest.approx(0.3)
        back = sum(f * n for f, n in zip(held.factors, held.numbers)) + (0 if held.offset is None else held.offset)
        assert torch.equal(back, held.q)
        assert 0 <= held.numbers.min() and held.numbers.max() <= cell.highest


@pytest.mark.parametrize("lowest, shift", [(-7, 3), (-8, 3), (-5, 3), (-4, 2), (-1, 0), (0, 0)])
def test_shift_is_the_smallest_that_is_enough(lowest, shift):
    """p = ceil(log2(-min q)); 6 takes three columns."""
    held = encode_weights(torch.tensor([[lowest / 8, 6 / 8, 0.0]]), scale="fixed")
    assert held.q.tolist() == [[lowest, 6, 0]] and held.shift == shift and len(held.factors) == 3
    with pytest.raises(MemextError, match=f"shift is {shift - 1}; .*allowed are whole numbers from {shift} to 8"):
        encode_weights(torch.tensor([[lowest / 8, 6 / 8, 0.0]]), scale="fixed", shift=shift - 1)


def test_share_of_cells_that_are_off():
    """By hand, 4 bits, so 8 cells: q = -1 and 1 are 15 and 1 in two's complement, 0 and 1 shifted by 2^0, (0, 1) and
    (1, 0) as a pair."""
    w = torch.tensor([[-0.125, 0.125]])
    shares = {e: encode_weights(w, encoding=e, scale="fixed").off_share for e in ENCODINGS}
    assert shares == {"twos-complement": 3 / 8, "shifted": 7 / 8, "signed-top": 3 / 8, "pair": 6 / 8}


def test_the_encoding_raises_it():
    """On weights as they are after training, most of them small: fewer cells are on in every case."""
    for seed, bits in itertools.product(range(3), (3, 4, 6, 8)):
        w = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.05
        share = {e: encode_weights(w, bits, e).off_share for e in ENCODINGS}
        assert share["twos-complement"] == share["signed-top"] < share["shifted"] < share["pair"]


@pytest.mark.parametrize("scale", ["layer", "channel", "fixed"])
def test_quantised_to_the_nearest(scale):
    w = torch.rand(5, 3, 2) * 1.8 - 0.9
    w[2] = 0
    q, step = quantise(w, 5, scale)
    assert ((q * step - w).abs() <= step / 2 + 1e-12).all() and not q[2].any()
    assert step.numel() == (5 if scale == "channel" else 1)
    if scale == "channel":
        assert (q.abs().amax((1, 2))[[0, 1, 3, 4]] == 15).all()


@pytest.mark.parametrize("wrong, words", [
    (dict(bits=1), "bits is 1; allowed: whole numbers from 2 to 8"),
    (dict(bits=True), "bits is True"),
    (dict(encoding="gray"), "encoding is 'gray'; allowed: 'twos-complement', 'shifted'"),
    (dict(scale="row"), "scale is 'row'; allowed: 'layer', 'channel', 'fixed'"),
    (dict(encoding="signed-top", cell=Cell(2)), "needs cells of one bit, and these hold 2"),
    (dict(shift=9), "shift is 9"),
])
def test_bad_settings(wrong, words):
    w = torch.tensor([[-0.9, 0.5]])
    with pytest.raises(MemextError, match=words):
        encode_weights(w, **{"bits": 4, **wrong})
    if "shift" not in wrong:  # what is enough for a layer's weights is known when they are written
        with pytest.raises(MemextError, match=words.replace("needs cells of one bit, and these hold 2", "cell is")):
            Crossbar(**wrong)


@pytest.mark.parametrize("w, options, words", [
    ([[float("nan"), 1.0]], {}, "infinite or not a number"), ([[2.0, 1.0]], dict(scale="fixed"), "largest here is 2;"),
    ([[1.0, 0.5]], dict(scale="fixed", encoding="signed-top"), r"up to 7 in 4 bits, and the largest is 8")])
def test_weights_that_cannot_be_stored(w, options, words):
    with pytest.raises(MemextError, match=words):
        encode_weights(torch.tensor(w), **options)


@pytest.mark.parametrize("wrong, words", [
    (dict(size=0), "size is 0; allowed: whole numbers from 1 on"), (dict(cell=1), "cell is 1; allowed: a Cell"),
    (dict(rows="all"), "rows is 'all'; allowed: 'packed', 'kernel'"), (dict(inputs="no"), "inputs is 'no'"),
    (dict(wire_ohm=-1.0), "wire_ohm is -1.0; allowed: numbers from 0 on"), (dict(variation=float("nan")), "variation"),
    (dict(read_noise="x"), "read_noise is 'x'"), (dict(adc_bits=0), "adc_bits is 0; allowed: None, or whole numbers"),
    (dict(adc_max=3), "adc_max is 3; allowed: None without adc_bits"), (dict(adc_bits=3, adc_max=0), "adc_max is 0"),
    (dict(encoding="pair", shift=3), "shift is 3; allowed: None, but with"), (dict(seed=-1), "seed is -1")])
def test_bad_crossbars(wrong, words):
    with pytest.raises(MemextError, match=words):
        Crossbar(**wrong)
