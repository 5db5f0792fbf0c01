"""Any dense tensor as [T, N]: the views the kernels read, checked against indexing one element at a time."""
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared_core import spikes
from shared_core.layout import Layout, layout_of

SIZES = st.lists(st.integers(1, 4), min_size=0, max_size=4)


@st.composite
def layouts(draw):
    shape = draw(SIZES)
    return Layout(tuple(shape), tuple(draw(st.permutations(range(len(shape))))))


def in_memory_order(t: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[*shape] -> [N]: what neuron i of the kernels' view holds."""
    return t.permute(layout.order).reshape(-1)


@given(layouts(), st.lists(st.integers(1, 3), max_size=2))
def test_empty_is_dense_and_has_the_promised_strides(layout, lead):
    t = layout.empty(*lead, dtype=torch.float32, device=torch.device("cpu"))
    assert t.shape == (*lead, *layout.shape)
    assert layout.is_dense(t, len(lead)) and layout.sequences(t) is t
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
    assert span == t.numel(), "no holes, nothing twice"


@given(layouts(), st.data())
def test_parameter_reads_what_broadcasting_gives(layout, data):
    """neuron i reads values[(i // inner) % size], for every shape that broadcasts, of any rank."""
    shape = layout.shape[data.draw(st.integers(0, len(layout.shape))):]
    shape = tuple(n if data.draw(st.booleans()) else 1 for n in shape)
    p = torch.arange(1.0, math.prod(shape) + 1).view(shape)
    if data.draw(st.booleans()):
        p = p.transpose(0, -1).contiguous().transpose(0, -1) if p.dim() > 1 else p
    values, inner, size = layout.parameter(p, torch.float64)
    assert values.dtype == torch.float64 and values.is_contiguous() and values.numel() == size
    read = values[(torch.arange(layout.neurons) // inner) % size]
    assert torch.equal(read, in_memory_order(p.double().expand(layout.shape), layout))


def test_parameter_of_an_empty_layer():
    values, inner, size = Layout((0,), (0,)).parameter(torch.empty(0), torch.float32)
    assert values.numel() == 0 and inner == 1 and size == 0


@given(layouts(), st.integers(1, 4), st.sampled_from(["dense", "sliced", "expanded", "time", "other order"]))
def test_sequence_reads_what_indexing_gives(layout, steps, kind):
    """Row t of the view starts t * stride further and holds step t, whatever the strides of the tensor were."""
    t = torch.randn(steps, *layout.shape)
    if kind == "dense":
        t = layout.empty(steps, dtype=torch.float32, device=torch.device("cpu")).copy_(t)
    elif kind == "sliced":
        t = torch.randn(steps, *(2 * n for n in layout.shape))
        t = t[(slice(None), *(slice(None, None, 2) for _ in layout.shape))]
    elif kind == "expanded":
        t = t[:1].expand(steps, *layout.shape)
    elif kind == "time":
        t = torch.randn(2 * steps, *layout.shape)[::2]
    view, stride = layout.sequence(t)
    assert torch.equal(view, t)
    for i in range(steps):
        row = torch.as_strided(view, (layout.neurons,), (1,), view.storage_offset() + i * stride)
        assert torch.equal(row, in_memory_order(t[i], layout))


@given(layouts(), st.integers(1, 3))
def test_layout_of_finds_any_dense_order(layout, steps):
    t = layout.empty(steps, dtype=torch.float32, device=torch.device("cpu"))
    found = layout_of(t)
    assert found.is_dense(t, 1) and found.sequence(t)[0] is t


@given(layouts(), st.integers(1, 3))
def test_pack_and_unpack_are_inverse(layout, steps):
    s = layout.empty(steps, dtype=torch.float32, device=torch.device("cpu")).bernoulli_(0.4)
    bits = spikes.pack(s)
    assert bits.shape == (steps, (layout.neurons + 7) // 8)
    assert torch.equal(spikes.unpack(bits, layout_of(s)), s)


def test_what_is_not_dense_gets_the_standard_order():
    assert layout_of(torch.randn(2, 6, 4)[:, ::2]).order == (0, 1)
    assert layout_of(torch.randn(2, 1, 4).expand(2, 3, 4)).order == (0, 1)
