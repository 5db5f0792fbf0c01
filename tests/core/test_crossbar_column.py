"""The current of a column: the worked values, the circuit solved as a dense matrix, and that the check can fail."""
import numpy as np
import pytest
import torch
from crossbar_reference import broken, column_by_equation, column_by_nodes

from shared_core.errors import MemextError
from shared_core.hardware import Cell, column_current
from shared_core.hardware.crossbar import column
from shared_core.hardware.crossbar.cells import ON_OHM, OPEN_OHM, READ_VOLT

PUBLISHED = Cell(4, off_ohm=OPEN_OHM, parallel=True)
UNIT = READ_VOLT / ON_OHM  # 5.22493e-6 A: the current of the number 1
# Numbers in a column, all rows with a spike: the current in units at 0, 1 and 5 ohms between rows, as worked out with
# the published tool's equation.
WORKED = [([1, 2, 4, 8], "15.0023 14.9875 14.9285"), ([15] * 8, "120 117.655 109.231"),
          ([1] * 64, "64.037 59.732 47.711"), ([8] * 64, "512.037 335.074 170.085")]


@pytest.mark.parametrize("numbers, printed", WORKED, ids=["1,2,4,8", "8x15", "64x1", "64x8"])
def test_worked_values(numbers, printed):
    """To the printed digit."""
    g = PUBLISHED.conductance(torch.tensor(numbers))
    for wire_ohm, text in zip((0, 1, 5), printed.split()):
        digits = len(text.partition(".")[2])
        assert f"{column_current(g, wire_ohm=wire_ohm).item() / UNIT:.{digits}f}" == text


def test_currents_that_the_tool_prints():
    assert f"{UNIT:.5e}" == "5.22493e-06"
    for numbers, amperes in (([1, 2, 4, 8], "7.83860e-05"), ([15] * 64, "5.0159e-03")):
        digits = len(amperes.partition(".")[2].partition("e")[0])
        assert f"{column_current(PUBLISHED.conductance(torch.tensor(numbers))).item():.{digits}e}" == amperes


def random_columns(rows, columns=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(5e3, 3e5, (rows, columns)), (rng.random((rows, columns)) < 0.4).astype(float)


def check(currents):
    """Against both dense solves. 1e-11: float64 rounding of matrices whose entries differ by a factor of 1e5."""
    for rows in (1, 2, 3, 64, 130):
        ohm, spikes = random_columns(rows)
        for wire_ohm in (0.0, 1e-3, 1.0, 37.0):
            found = currents(torch.from_numpy(1 / ohm), torch.from_numpy(spikes), wire_ohm=wire_ohm)
            for j in range(ohm.shape[1]):
                volt = READ_VOLT * spikes[:, j]
                wanted = [column_by_equation(ohm[:, j], volt, wire_ohm)]
                if wire_ohm >= 1:  # conductances of 1 / wire_ohm would cost the nodal form its digits
                    wanted.append(column_by_nodes(ohm[:, j], volt, wire_ohm))
                for value in wanted:
                    assert abs(found[j].item() - value) <= 1e-11 * (volt / ohm[:, j]).sum() + 1e-18


def test_the_circuit_as_a_dense_matrix():
    check(column_current)


@pytest.mark.parametrize("old, new", [
    ("above = above * drops[i]", "above = above * 1"),          # the wire is left out of what hangs above
    ("share = share * drops[i]", "share = drops[i]"),           # only one piece of wire
    ("reversed(range(len(drops)))", "range(len(drops))"),       # the foot at the wrong end
    ("above = g + above", "above = g"),                         # rows above do not load the wire
    ("1 / (1 + wire_ohm * above)", "1 / (1 + wire_ohm * g)")])
def test_a_broken_solver_is_noticed(old, new):
    with pytest.raises(AssertionError):
        check(broken(column, old, new).column_current)


def test_rows_without_a_spike_are_at_zero_volts():
    """They draw current from the column, so a cell that is on costs the others some, and an off cell less."""
    spike = torch.tensor([1.0, 0.0])
    on, off = (column_current(Cell().conductance(torch.tensor([1, n])), spike, wire_ohm=50.0) for n in (1, 0))
    assert on < off < column_current(Cell().conductance(torch.tensor([1])), wire_ohm=50.0)


@pytest.mark.parametrize("wrong, words", [
    (lambda: column_current(torch.tensor(1.0)), r"shape \(\); \[rows, ...\] with at least one row"),
    (lambda: column_current(torch.zeros(0, 3)), "with at least one row"),
    (lambda: column_current(torch.ones(3), wire_ohm=-1), "wire_ohm is -1"),
    (lambda: column_current(torch.tensor([1.0, -1.0])), "least conductance -1; allowed: none below 0"),
    (lambda: column_current(torch.ones(3), torch.ones(4)), r"spikes have shape \(4,\) and conductance \(3,\)"),
    (lambda: Cell(0), "Cell: bits is 0; allowed: whole numbers from 1 to 8"),
    (lambda: Cell(on_ohm=5.0, off_ohm=5.0), "0 < on_ohm < off_ohm"),
    (lambda: Cell(2).conductance(torch.tensor([4])), "go from 4 to 4; allowed in 2 bits: 0 to 3"),
])
def test_bad_input(wrong, words):
    with pytest.raises(MemextError, match=words):
        wrong()


def test_states_of_a_cell():
    """Evenly spaced from off to on; in parallel, a device per bit."""
    g = Cell(2, on_ohm=1e3, off_ohm=1e4).conductance(torch.arange(4))
    assert g[0] == 1e-4 and g[3] == pytest.approx(1e-3) and torch.allclose(g.diff(), g.diff()[0], rtol=1e-12)
    parallel = Cell(2, on_ohm=1e3, off_ohm=1e4, parallel=True)
    assert parallel.conductance(torch.arange(4)).tolist() == pytest.approx([2e-4, 1.1e-3, 2.1e-3, 3e-3])
    assert parallel.off_share(torch.arange(4)) == 0.5 and Cell(2).off_share(torch.arange(4)) == 0.25
