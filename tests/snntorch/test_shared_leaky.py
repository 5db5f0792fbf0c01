"""SharedLeaky against EfficientLIF-Net's equations with snnTorch's neuron, written out in shared_reference.py."""
from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import snntorch
import torch
from helpers import assert_bit_equal, assert_fires, error
from shared_reference import SnnTorch, run
from snntorch import surrogate, utils
from torch import nn

import snntorch_memext
from shared_core import temporal
from shared_core.errors import MemextError
from snntorch_memext.neurons import FusedLeaky, SharedLeaky

# Two orders of the same sums, over some hundred steps that hand the gradient on.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
ONE = [lambda o: o]
LEARN = dict(learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True)


def layer(groups, reset="subtract", delay=True, *, beta=0.7, threshold=0.8, scale=1.5, dtype=torch.float32, **options):
    return SharedLeaky(groups, beta=beta, threshold=threshold, spike_grad=surrogate.atan(alpha=2.0),
                       reset_mechanism=reset, reset_delay=delay, graded_spikes_factor=scale, **LEARN,
                       **options).to(dtype)


def reference(lif, reset, delay):
    return SnnTorch(lif.beta, lif.threshold, lif.graded_spikes_factor, reset, delay)


def drawn(T, shape, dtype=torch.float32):
    return (torch.randn(T, *shape) * 0.8 + 0.35).to(dtype)


def gradients(spikes, mem, inputs):
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (spikes, mem)]
    return torch.autograd.grad((spikes, mem), inputs, weights)


def stepped(lif, x_seq, mem=None):
    spikes = []
    for x in x_seq:
        spk, mem = lif(x, mem)
        spikes.append(spk)
    return torch.stack(spikes), mem


def check(found, dtype):
    wanted = found[0]
    for got in found[1:]:
        assert_bit_equal((got[0] != 0), (wanted[0] != 0), "spikes")
        assert error(got[0], wanted[0]) <= 1e-7  # spk is float32 in snnTorch, also where all else is float64
        assert_fires(got[0])
        assert_bit_equal(got[1], wanted[1], "membrane")
        for i, (a, b) in enumerate(zip(got[2], wanted[2], strict=True)):
            assert a.isfinite().all() and error(a, b) <= TOLERANCE[dtype], (i, error(a, b))


# ---- channels ---------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("reset, delay", [("subtract", True), ("subtract", False), ("zero", True), ("zero", False),
                                          ("none", True)])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_channels_share_a_membrane(groups, reset, delay, dtype):
    """Eq. 7-11: single steps and a whole sequence; gradients of x, beta, threshold and the graded spikes' factor."""
    for T, shape in ((5, (2, 16, 5, 3)), (10, (3, 8)), (6, (2, 8, 9))):
        # float32: one value per neuron of the membrane, because the gradient of a single one is a sum that may cancel.
        values = () if dtype == torch.float64 else (shape[1] // groups, *shape[2:])
        beta, threshold = torch.rand(values) * 0.4 + 0.5, torch.rand(values) * 0.4 + 0.6
        lif, x = layer(groups, reset, delay, beta=beta, threshold=threshold, dtype=dtype), drawn(T, shape, dtype)
        if reset == "none":
            x -= 0.3
        found = []
        for how in (lambda x, lif=lif: run(x, ONE, reference(lif, reset, delay), groups)[:2],
                    lambda x, lif=lif: lif.multi_step(x), lambda x, lif=lif: stepped(lif, x)):
            lif.reset_mem()
            leaf = x.clone().requires_grad_()
            spikes, mem = how(leaf)
            assert mem.shape == (shape[0], shape[1] // groups, *shape[2:])
            inputs = [leaf, lif.beta, lif.threshold, lif.graded_spikes_factor]
            # float32 spk: its gradient arrives in float32
            spikes = spikes if dtype == torch.float32 else spikes.double()
            found.append((spikes.detach(), mem.detach(), gradients(spikes, mem, inputs)))
        check(found, dtype)


@pytest.mark.parametrize("per", ["channel of the membrane", "neuron of the membrane"])
def test_parameters_of_the_membranes_shape(per):
    shape = (4, 1, 1) if per.startswith("channel") else (4, 3, 5)
    beta, threshold = torch.rand(shape) * 0.5 + 0.4, torch.rand(shape) * 0.4 + 0.6
    lif, x = layer(2, beta=beta, threshold=threshold, scale=1.0), drawn(6, (2, 8, 3, 5))
    found = []
    for how in (lambda x: run(x, ONE, reference(lif, "subtract", True), 2)[:2], lif.multi_step,
                lambda x: stepped(lif, x, torch.zeros(2, 4, 3, 5))):
        lif.reset_mem()
        leaf = x.clone().requires_grad_()
        spikes, mem = how(leaf)
        found.append((spikes.detach(), mem.detach(), gradients(spikes, mem, [leaf, lif.beta, lif.threshold])))
    check(found, torch.float32)


def test_one_group_is_fused_leaky():
    options = dict(beta=0.8, threshold=0.9, spike_grad=surrogate.fast_sigmoid(), reset_mechanism="zero")
    a, b, x = SharedLeaky(1, **options), FusedLeaky(**options), drawn(8, (2, 5, 3))
    for got, wanted in zip(a.multi_step(x, record=True), b.multi_step(x, record=True), strict=True):
        assert_bit_equal(got, wanted)
    with_host, _ = stepped(snntorch.Leaky(**options), x)
    a.reset_mem()
    assert_bit_equal(stepped(a, x)[0], with_host)


@pytest.mark.parametrize("lam, T", [(0.25, 5), (0.9, 50)])
def test_long_sequences_of_eight_groups(lam, T):
    lif, x = layer(8, beta=lam, scale=1.0), drawn(T, (2, 16, 4, 4)) * (1 if lam < 0.5 else 0.4)
    found = []
    for how in (lambda x: run(x, ONE, reference(lif, "subtract", True), 8)[:2], lif.multi_step):
        lif.reset_mem()
        leaf = x.clone().requires_grad_()
        spikes, mem = how(leaf)
        found.append((spikes.detach(), mem.detach(), gradients(spikes, mem, [leaf, lif.beta, lif.threshold])))
    check(found, torch.float32)


def test_recorded_states_are_those_after_each_step():
    lif, x = layer(4), drawn(5, (2, 8, 3))
    spikes, mem_seq = lif.multi_step(x, record=True)
    _, mem, seen, _ = run(x, ONE, reference(lif, "subtract", True), 4)
    assert_bit_equal(mem_seq, torch.stack(seen))
    assert_bit_equal(lif.mem, mem)
    halves = [lif.multi_step(x[:2], torch.zeros(2, 2, 3)), lif.multi_step(x[2:])]
    assert_bit_equal(torch.cat([h[0] for h in halves]), spikes)


def test_channels_last_and_strided_input():
    lif, x = layer(2), drawn(5, (2, 8, 5, 3))
    wanted = run(x, ONE, reference(lif, "subtract", True), 2)[0]
    for seen in (x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3), x.repeat_interleave(2, 2)[:, :, ::2]):
        lif.reset_mem()
        assert_bit_equal(lif.multi_step(seen)[0], wanted)


@pytest.mark.parametrize("option", ["inhibition", "state_quant"])
def test_where_no_kernel_can_serve_the_hosts_equations_run(option):
    """The host's own step, one channel group after the other, as if it were called on each."""
    options = dict(beta=0.8, threshold=0.6, spike_grad=surrogate.atan(), **{option: True})
    if option == "state_quant":
        options[option] = lambda mem: (mem * 8).round() / 8
    host, x = snntorch.Leaky(**options), drawn(4, (3, 8)) * 2
    wanted, mem = [], None
    for x_t in x:
        parts = []
        for part in x_t.chunk(4, 1):
            spk, mem = host(part, mem)
            parts.append(spk)
        wanted.append(torch.cat(parts, 1))
    for hidden in (False, True):
        lif = SharedLeaky(4, init_hidden=hidden, **options)
        assert snntorch_memext.neurons.why_host_path(lif) is not None
        spikes = torch.stack([lif(x_t) for x_t in x]) if hidden else stepped(lif, x)[0]
        assert_bit_equal(spikes, torch.stack(wanted))
        assert_bit_equal(lif.mem, mem)
        lif.reset_mem()
        assert_bit_equal(lif.multi_step(x)[0], torch.stack(wanted))


# ---- layers, and both -------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Layers of equal size, one after the other, with one membrane (Eq. 4-6; with groups Eq. 12-17)."""

    def __init__(self, lif, depth, channels=16, dtype=torch.float32):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(channels, channels, dtype=dtype) for _ in range(depth))
        for linear in self.linear:
            nn.init.normal_(linear.weight, 0, 0.35)
            nn.init.normal_(linear.bias, 0.4, 0.1)
        self.lif = lif

    def forward(self, x):
        for linear in self.linear:
            x = self.lif(linear(x.to(linear.weight.dtype)))  # spk is float32
        return x


@DTYPES
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("lam, T, depth", [(0.5, 4, 3), (0.25, 5, 13)])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_layers_share_a_membrane(reset, lam, T, depth, groups, dtype):
    lif = layer(groups, reset, beta=lam, scale=1.0, dtype=dtype, init_hidden=True)
    net, x = Deep(lif, depth, dtype=dtype), drawn(T, (3, 16), dtype)
    found = []
    for shared in (False, True):
        leaf = x.clone().requires_grad_()
        if shared:
            spikes = torch.stack([net(x_t.to(dtype)) for x_t in leaf])
            mem = lif.mem
        else:
            # spk is float32 in snnTorch whatever the membrane is: from layer to layer, so is its gradient
            first, *others = net.linear
            layers = [first, *(lambda o, linear=linear: linear(o.float().to(dtype)) for linear in others)]
            spikes, mem, _, fired = run(leaf, layers, reference(lif, reset, True), groups)
            assert all(0.02 < f.mean() < 0.9 for f in fired)
        inputs = [leaf, *net.linear.parameters(), lif.beta, lif.threshold]
        found.append((spikes.detach(), mem.detach(), gradients(spikes, mem, inputs)))
    check(found, dtype)


@pytest.mark.parametrize("method", ["checkpoint", "reverse"])
@pytest.mark.parametrize("depth", [1, 3], ids=["channels", "layers and channels"])
def test_unrolled(method, depth):
    found, x = [], drawn(12, (3, 16))
    for how in ("store", method):
        torch.manual_seed(3)
        net = Deep(layer(2, beta=0.6, scale=1.0, init_hidden=True), depth)
        leaf = x.clone().requires_grad_()
        out = temporal.unroll(net, leaf, method=how)
        out.mul(torch.arange(16.0)).sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert_bit_equal(found[1][0], found[0][0])
    assert_fires(found[0][0])
    assert len(found[0]) == 2 + 2 * depth + 3
    for a, b in zip(*found, strict=True):
        assert error(b, a) <= 1e-5


# ---- the frameworks' habits -------------------------------------------------------------------------------------


def test_it_is_the_frameworks_neuron():
    lif = snntorch.SharedLeaky(groups=4, beta=0.9, init_hidden=True)
    assert type(lif) is SharedLeaky and isinstance(lif, snntorch.Leaky) and "groups=4" in repr(lif)
    assert list(lif.state_dict()) == list(snntorch.Leaky(beta=0.9).state_dict())
    net, x = nn.Sequential(nn.Linear(4, 8), lif), drawn(2, (3, 4))
    net(x[0])
    assert lif.mem.shape == (3, 2) and lif.reset.shape == (3, 2)
    utils.reset(net)
    assert not lif.mem.any()
    net(drawn(1, (5, 4))[0])
    assert lif.mem.shape == (5, 2), "a membrane of another batch size starts anew"


def test_deepcopy_and_pickle():
    lif, x = layer(2), drawn(4, (3, 8))
    with torch.no_grad():
        lif.multi_step(x)
        others = [copy.deepcopy(lif), pickle.loads(pickle.dumps(lif))]
        after = lif.multi_step(x)[0]
        for other in others:
            assert other.groups == 2
            assert_bit_equal(other.multi_step(x)[0], after)


def test_the_hosts_options_are_passed_on():
    for hidden, output in itertools.product((False, True), repeat=2):
        lif = SharedLeaky(2, beta=0.9, init_hidden=hidden, output=output)
        out = lif(torch.randn(3, 8))
        assert isinstance(out, tuple) == (output or not hidden)
        assert (out[0] if isinstance(out, tuple) else out).shape == (3, 8)
    with pytest.raises(TypeError):
        SharedLeaky(2)  # beta is needed, as in the framework
    with pytest.raises(TypeError):
        SharedLeaky(2, beta=0.9, no_such_option=1)


@pytest.mark.parametrize("groups", [0, -1, 0.9, "2", True, None])
def test_groups_that_are_no_count_are_refused(groups):
    with pytest.raises(MemextError, match="SharedLeaky: groups is"):
        SharedLeaky(groups, beta=0.9)


def test_input_that_cannot_be_split_is_refused():
    lif = SharedLeaky(4, beta=0.9)
    for call, shape in ((lif, (3, 6)), (lif.multi_step, (5, 3, 6))):
        with pytest.raises(MemextError, match=r"C = 6 channels .*groups=4"):
            call(torch.randn(shape))
    for call, shape in ((lif, (8,)), (lif.multi_step, (5, 8))):
        with pytest.raises(MemextError, match=r"rank 2 or more.*groups=4"):
            call(torch.randn(shape))
    assert lif.mem.shape == (0,)
