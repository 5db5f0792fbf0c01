"""Energy by the papers' closed formulas: every figure of their tables, and what the two formulas count."""
import pytest

from shared_core.errors import MemextError
from shared_core.hardware import LayerTable, estimate, operations_nj
from shared_core.hardware.estimate import E_AC_INT8_PJ


def table(*macs, **options):
    """Layers with so many multiply-adds each."""
    return LayerTable.from_rows([dict(in_features=n, out_features=1, **options) for n in macs])


# Operations of each network (first row: accumulations of one time step), T, sparsity as the authors' script has it,
# nJ as it prints them, and as Table II does.
TABLE_II = {
    "S-BP": (199426048, 50, 0.9, 117182.75, "11.7"),
    "BNTT": (199426048, 20, 0.91, 42185.79, "4.2"),
    "Direct": (993918976, 10, 0.9, 116805.36, "11.7"),
    "TSSL": (993918976, 5, 0.901, 57818.65, "5.8"),
    "LTH": (227056025 * 10, 5, 0.98, 26683.62, "2.7"),  # the script has FLOPs * T * (1 - s) = 227056025
}


def test_energy_of_an_accumulation():
    assert E_AC_INT8_PJ == pytest.approx(0.11752, abs=1e-12)  # 0.02938 mW at 250 MHz


@pytest.mark.parametrize("work", TABLE_II)
def test_estimated_column_of_table_ii(work):
    macs, steps, sparsity, nj, printed = TABLE_II[work]
    found = estimate(table(macs), T=steps, sparsity=sparsity).table2_nj
    assert found == pytest.approx(nj, abs=0.005), found
    assert f"{found / 1e4:.1f}" == printed


def test_the_row_that_is_not_the_formula():
    """TDBN is estimated from the additions and multiplications that its authors report."""
    assert operations_nj(1.8e9, 3.4e7) == pytest.approx(132773.6, abs=0.05)
    with pytest.raises(MemextError, match="additions=-1"):
        operations_nj(-1, 0)


def test_worked_example():
    """Three layers, T = 4, a tenth of the inputs spikes."""
    three = table(27648, 294912, 20480)
    found = estimate(three, T=4, sparsity=0.9)
    assert found.eq13_nj * 1e3 == pytest.approx(240721.92, abs=0.005)
    assert found.ann_nj * 1e3 == pytest.approx(1577984, abs=0.5)
    assert found.table2_nj * 1e3 == pytest.approx(16125.6243, abs=0.00005)
    assert estimate(three, T=4, sparsity=0.9, e_ac_pj=0.9).table2_nj * 1e3 == pytest.approx(123494.4, abs=0.05)


def test_the_first_layer_once():
    """E_MAC * FL[1] whatever T and the rate; where its input is spikes it is a layer like the others."""
    one = estimate(table(1000, input_rate=0.5), T=8)
    assert one.eq13_nj == pytest.approx(4.6) and one.table2_nj == pytest.approx(1000 * 8 * 0.5 * 0.11752e-3)
    events = estimate(table(1000, input_rate=0.5, real_input=False), T=8)
    assert events.eq13_nj == pytest.approx(0.9e-3 * 1000 * 8 * 0.5)


def test_rates_sparsity_and_weights():
    rows = [dict(in_features=100, out_features=10, input_rate=1.0),
            dict(in_features=10, out_features=10, input_rate=0.2, weight_sparsity=0.75, name="second")]
    layers = LayerTable.from_rows(rows, T=2)
    assert [x.rate for x in estimate(layers).layers] == [1.0, 0.2]
    assert [x.rate for x in estimate(layers, sparsity="weights").layers] == pytest.approx([1.0, 0.05])
    assert [x.rate for x in estimate(layers, sparsity=0.5).layers] == [0.5, 0.5]
    assert estimate(layers, T=6).table2_nj == pytest.approx(3 * estimate(layers).table2_nj)


def test_a_layer_that_runs_once_is_counted_once():
    """A convolution before the time dimension (a static image, encoded once), and a layer used twice a step."""
    rows = [dict(in_features=100, out_features=10, input_rate=1.0, evaluations=1),
            dict(in_features=10, out_features=10, input_rate=0.5, evaluations=8)]
    layers = LayerTable.from_rows(rows, T=4)
    assert [x.runs for x in estimate(layers).layers] == [1, 8]
    assert [x.runs for x in estimate(layers, T=2).layers] == [1, 4]
    assert estimate(layers).ann_nj == pytest.approx(4.6e-3 * (1000 + 2 * 100))


def test_what_is_left_out_is_named():
    rows = [dict(in_features=4, out_features=4, input_rate=1.0), dict(kind="pool", name="p"),
            dict(kind="other", name="attn", reason="a product"),
            dict(in_features=4, out_features=4, input_rate=0.5, real_input=True, name="real")]
    found = estimate(LayerTable.from_rows(rows, T=1))
    assert found.not_counted == ("p (pool): no synaptic operations in these formulas", "attn (other): a product")
    assert len(found.notes) == 1 and found.notes[0].startswith("real: ")
    text = found.table()
    assert "not counted: p (pool)" in text and "note: real" in text and "total" in text


@pytest.mark.parametrize("options, words", [
    (dict(T=4), "no input_rate for layer0, layer1"), (dict(sparsity=0.5), "pass T=4"),
    (dict(T=4, sparsity=1.5), "sparsity is 1.5"), (dict(T=0, sparsity=0.5), "T is 0"),
    (dict(T=2.5, sparsity=0.5), "T is 2.5"), (dict(T=4, sparsity="some"), "sparsity is 'some'")])
def test_what_cannot_be_estimated(options, words):
    with pytest.raises(MemextError, match=words):
        estimate(table(10, 10), **options)
    with pytest.raises(MemextError, match="table is list"):
        estimate([], **options)
    with pytest.raises(MemextError, match="no layer of the table has synaptic operations: p"):
        estimate(LayerTable.from_rows([dict(kind="pool", name="p")]), T=1)
