"""SharedLIFNode against EfficientLIF-Net's equations, written out in shared_reference.py."""
from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from helpers import assert_bit_equal, assert_fires, error
from shared_reference import Paper, SpikingJelly, run
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import nn

import sj_memext
from shared_core import temporal
from shared_core.backends import native
from shared_core.errors import MemextError

# float32: two orders of the same sums, over some hundred steps that hand the gradient on. float64: likewise.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
ONE = [lambda o: o]


def node(groups, ref: SpikingJelly, **options):
    return neuron.SharedLIFNode(groups, ref.tau, ref.decay_input, ref.v_threshold, ref.v_reset, surrogate.ATan(2.0),
                                ref.detach_reset, **options)


def drawn(T, shape, gain=1.0, dtype=torch.float32):
    return ((torch.randn(T, *shape) * 0.9 + 0.35) * gain).to(dtype)


def gradients(spikes, membrane, inputs):
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (spikes, membrane)]
    return torch.autograd.grad((spikes, membrane), inputs, weights)


def stepped(n, x_seq):
    return torch.stack([n(x) for x in x_seq])


def assert_equal(got, wanted, dtype):
    """(spikes, membrane, gradients)"""
    assert_bit_equal(got[0], wanted[0], "spikes")
    assert_fires(got[0])
    assert_bit_equal(got[1], wanted[1], "membrane")
    for i, (a, b) in enumerate(zip(got[2], wanted[2], strict=True)):
        assert a.isfinite().all() and error(a, b) <= TOLERANCE[dtype], (i, error(a, b))


RESETS = {"soft": None, "hard": 0.0, "hard to -0.3": -0.3}


# ---- channels ---------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("decay_input", [True, False], ids=["x over tau", "x"])
@pytest.mark.parametrize("v_reset", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_channels_share_a_membrane(groups, v_reset, decay_input, dtype):
    """Eq. 7-11, both step modes, odd maps and none, a membrane that is carried on from one sequence to the next."""
    for i, (T, shape) in enumerate(((5, (2, 16, 5, 3)), (7, (3, 8)), (3, (2, 8, 9)))):
        ref = SpikingJelly(3.0 if i else 4 / 3, decay_input, 0.8, v_reset, detach_reset=i == 1)
        x = drawn(2 * T, shape, ref.tau if decay_input else 1.0, dtype)
        found = []
        for mode in ("reference", "m", "s"):
            leaf = x.clone().requires_grad_()
            if mode == "reference":
                spikes, v, *_ = run(leaf, ONE, ref, groups)
            else:
                n = node(groups, ref, step_mode=mode)
                call = n if mode == "m" else lambda x_seq, n=n: stepped(n, x_seq)
                spikes, v = torch.cat([call(leaf[:T]), call(leaf[T:])]), n.v
                assert v.shape == (shape[0], shape[1] // groups, *shape[2:])
            found.append((spikes, v, gradients(spikes, v, [leaf])))
        assert_equal(found[1], found[0], dtype)
        assert_equal(found[2], found[0], dtype)


@pytest.mark.parametrize("lam, T", [(0.25, 5), (0.9, 50)])
@pytest.mark.parametrize("groups", [2, 8])
def test_the_paper_to_the_letter(groups, lam, T):
    """Eq. 8 as printed, U = lam (U - O) + X, in float64: the order of operations is not the framework's."""
    x = drawn(T, (2, 16, 4, 4), dtype=torch.float64).requires_grad_()
    for detach in (False, True):
        n = neuron.SharedLIFNode(groups, tau=1 / (1 - lam), decay_input=False, v_reset=None, step_mode="m",
                                 surrogate_function=surrogate.ATan(2.0), detach_reset=detach)
        spikes, (u, o), *_ = run(x, ONE, Paper(lam, detach), groups)
        got = n(x)
        assert_bit_equal(got, spikes)
        assert_fires(got)
        kept = u - (o.detach() if detach else o)
        for a, b in zip(gradients(got, n.v, [x]), gradients(spikes, kept, [x]), strict=True):
            assert error(a, b) <= 1e-10


def test_one_group_is_the_frameworks_neuron():
    for v_reset in RESETS.values():
        ref = SpikingJelly(2.0, True, 1.0, v_reset)
        theirs = neuron.LIFNode(2.0, True, 1.0, v_reset, surrogate.ATan(2.0), step_mode="m")
        x = drawn(9, (2, 5, 3), 2.0).requires_grad_()
        a, b = node(1, ref, step_mode="m"), theirs
        assert_bit_equal(a(x), b(x))
        assert_bit_equal(a.v, b.v)
        for g, wanted in zip(gradients(a(x), a.v, [x]), gradients(b(x), b.v, [x]), strict=True):
            assert error(g, wanted) <= 1e-6


@pytest.mark.parametrize("view", [
    lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    lambda x: x.movedim(0, 2).contiguous().movedim(2, 0),
    lambda x: x[:1].expand(4, -1, -1, -1, -1),
], ids=["channels_last", "strided channels", "time inside", "the same input in each step"])
def test_input_of_any_strides(view):
    ref, x = SpikingJelly(2.0, True, 0.8, None), drawn(4, (3, 8, 5, 3), 2.0)
    found = []
    for shared in (True, False):
        leaf = x.clone().requires_grad_()
        n = node(4, ref, step_mode="m")
        spikes, v = (n(view(leaf)), n.v) if shared else run(view(leaf), ONE, ref, 4)[:2]
        found.append((spikes, v, gradients(spikes, v, [leaf])))
    assert_equal(*found, torch.float32)


# ---- layers, and both -------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Layers of equal activation size after one another, with one membrane (Eq. 4-6; with groups Eq. 12-17)."""

    def __init__(self, n, depth, channels=8, dtype=torch.float32, drive=0.4):
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype) for _ in range(depth)]
        for conv in convs:
            nn.init.normal_(conv.weight, 0, 0.17)
            nn.init.normal_(conv.bias, drive, 0.1)  # so that every layer fires: see the assertions
        self.convs, self.neuron = nn.ModuleList(convs), n

    def forward(self, x):
        for conv in self.convs:
            x = self.neuron(conv(x))
        return x


def check_layers(ref, groups, T, depth, dtype, shape=(2, 8, 5, 5), drive=0.4):
    n = node(groups, ref, step_mode="s")
    net = Deep(n, depth, shape[1], dtype, drive)
    x = drawn(T, shape, 1.0, dtype).requires_grad_()
    inputs = [x, *net.parameters()]
    spikes, v, _, fired = run(x, net.convs, ref, groups)
    rates = [f.mean().item() for f in fired]
    assert 0.02 < min(rates) and max(rates) < 0.9, rates
    got = stepped(net, x)
    assert_equal((got, n.v, gradients(got, n.v, inputs)), (spikes, v, gradients(spikes, v, inputs)), dtype)


@DTYPES
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("v_reset", [None, 0.0], ids=["soft", "hard"])
def test_layers_share_a_membrane(v_reset, groups, dtype):
    """Eq. 4-6 (groups=1) and Eq. 12-17: one object, called three times in each time step."""
    check_layers(SpikingJelly(4 / 3, False, 0.8, v_reset, detach_reset=groups == 2), groups, 4, 3, dtype)


@DTYPES
@pytest.mark.parametrize("lam, T, depth", [(0.25, 5, 13), (0.9, 50, 4)])
@pytest.mark.parametrize("groups", [1, 2])
def test_long_chains_of_calls(lam, T, depth, groups, dtype):
    """Where the published inverse (Eq. 21) divides by lam 65 and 200 times."""
    check_layers(SpikingJelly(1 / (1 - lam), False, 1.0, None), groups, T, depth, dtype,
                 drive=0.1 if lam > 0.5 else 0.4)


def test_different_layers_of_one_activation_size_share_a_membrane():
    """conv, linear on flattened maps, a grown map: what counts is the shape of the activation."""
    ref, n = SpikingJelly(2.0, True, 0.5, None), None
    a, b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)
    n = node(2, ref)
    nn.init.constant_(b.bias, 0.5)
    x = drawn(3, (2, 3, 6, 6), 3.0)
    got = torch.stack([n(b(n(a(x_t)))) for x_t in x])
    wanted, v, *_ = run(x, [a, b], ref, 2)
    assert_bit_equal(got, wanted)
    assert_bit_equal(n.v, v)
    assert_fires(got)


def test_a_membrane_of_another_shape_starts_anew():
    n = node(2, SpikingJelly(2.0, True, 0.8, -0.3), step_mode="m")
    first = drawn(3, (4, 8, 3), 2.0)
    n(first)
    smaller = drawn(3, (2, 8, 3), 2.0)
    got, fresh = n(smaller), node(2, SpikingJelly(2.0, True, 0.8, -0.3), step_mode="m")
    assert_bit_equal(got, fresh(smaller))
    assert n.v.shape == (2, 4, 3)


# ---- with the rest of the package -------------------------------------------------------------------------------


def test_it_is_the_frameworks_neuron():
    n = neuron.SharedLIFNode(groups=2, tau=4 / 3, v_reset=None)
    assert isinstance(n, neuron.LIFNode) and isinstance(n, base.MemoryModule)
    assert n is not None and neuron.SharedLIFNode is sj_memext.neuron.SharedLIFNode
    assert "groups=2" in repr(n) and "tau=1.33" in repr(n)
    net = nn.Sequential(nn.Linear(4, 8), n)
    functional.set_step_mode(net, "m")
    x = drawn(3, (20, 4), 3.0)
    first = net(x)
    assert not torch.equal(net(x), first), "the state is carried on"
    functional.reset_net(net)
    assert n.v == 0.0 and torch.equal(net(x), first)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]


def test_deepcopy_and_pickle():
    n = neuron.SharedLIFNode(4, v_reset=None, step_mode="m")
    x = drawn(3, (2, 8), 2.0)
    n(x)
    wanted, v = copy.deepcopy(n), n.v
    after = n(x)
    for other in (wanted, pickle.loads(pickle.dumps(wanted))):
        assert other.groups == 4 and torch.equal(other.v, v)
        assert_bit_equal(other(x), after)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_the_membrane_after_each_step_is_stored_on_request(mode):
    ref, x = SpikingJelly(2.0, True, 0.8, None), drawn(5, (2, 8, 3), 2.0)
    n = node(4, ref, step_mode=mode, store_v_seq=True)
    spikes = n(x) if mode == "m" else stepped(n, x)
    wanted, _, seen, _ = run(x, ONE, ref, 4)
    assert_bit_equal(spikes, wanted)
    assert_bit_equal(n.v_seq, torch.stack(seen))


def test_where_no_kernel_can_serve_the_frameworks_equations_run():
    """A threshold that learns: in both step modes the groups still run in turn."""
    x = drawn(5, (2, 8, 3), 2.0)
    for mode in ("m", "s"):
        n = neuron.SharedLIFNode(4, v_threshold=0.8, v_reset=None, step_mode=mode, store_v_seq=True,
                                 surrogate_function=lambda z: surrogate.atan.apply(z, 2.0))  # the framework's own loop
        n.v_threshold = nn.Parameter(torch.tensor(0.8))
        leaf = x.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "running on SpikingJelly's own equations", once a process
            spikes = n(leaf) if mode == "m" else stepped(n, leaf)
        wanted, v, seen, _ = run(leaf, ONE, SpikingJelly(2.0, True, n.v_threshold, None), 4)
        inputs = [leaf, n.v_threshold]
        assert_equal((spikes, n.v, gradients(spikes, n.v, inputs)), (wanted, v, gradients(wanted, v, inputs)),
                     torch.float32)
        assert_bit_equal(n.v_seq, torch.stack(seen))


def test_autocast():
    """Half-precision input, float32 membrane: spikes are half, and those of the same values in float32."""
    net = nn.Sequential(layer.Conv2d(3, 8, 3, padding=1, step_mode="m"), neuron.SharedLIFNode(2, step_mode="m"))
    x = drawn(4, (2, 3, 6, 6), 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net[0](x)
        got = net[1](y)
        got.sum().backward()
    assert y.dtype == got.dtype == torch.bfloat16 and net[1].v.dtype == torch.float32
    fresh = neuron.SharedLIFNode(2, step_mode="m")
    assert_bit_equal(got.float(), fresh(y.float().detach()))
    assert_fires(got) and net[0].weight.grad.norm() > 0


class Saved:
    """Bytes that autograd keeps while this is on, but for those of `known` tensors; a storage counts once."""

    def __init__(self, *known):
        self.known, self.kept = {t.untyped_storage().data_ptr() for t in known}, {}

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        return self.hooks.__exit__(*error)

    def pack(self, t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.kept[storage.data_ptr()] = t.numel() * t.element_size()
        return t

    @property
    def bytes(self):
        return sum(self.kept.values())


@pytest.mark.skipif(native.unavailable() is not None, reason=f"needs the CPU kernels: {native.unavailable()}")
@pytest.mark.parametrize("T", [5, 70])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_saved_membrane_bytes_are_those_of_the_formula(groups, T):
    """A membrane has 4 N C H W / groups bytes. Besides the input, a sequence keeps the one it starts from, unless that
    is at rest, and one every 32 of its T * groups steps. Single steps: the one each call starts from."""
    N, C, H, W = 2, 16, 5, 3
    one = 4 * N * C * H * W // groups
    x = drawn(T, (N, C, H, W), 2.0).requires_grad_()
    n = node(groups, SpikingJelly(2.0, True, 0.8, None), step_mode="m")
    for start in (0, 1):
        with Saved(x) as saved:
            spikes = n(x)
        assert saved.bytes == one * (start + (T * groups - 1) // 32)
        assert n.v.numel() * n.v.element_size() == one
        spikes.sum().backward()
        n.v = n.v.detach()
    n.reset()
    n.step_mode = "s"
    with Saved(x) as saved:
        spikes = stepped(n, x)
    if groups > 1:
        assert saved.bytes == one * (T - 1)
    with Saved(x) as saved:
        run(x, ONE, SpikingJelly(2.0, True, 0.8, None), groups)
    assert saved.bytes >= 4 * N * C * H * W * T, "the equations under Torch keep every membrane"


class Net(nn.Module):
    """conv - batch norm - shared neuron, twice, with a pool: what `compress` and `recompute` know."""

    def __init__(self, groups, step_mode="m"):
        super().__init__()
        make = lambda: neuron.SharedLIFNode(groups, tau=4 / 3, v_reset=None, detach_reset=True,  # noqa: E731
                                            surrogate_function=surrogate.ATan(2.0))
        self.body = nn.Sequential(layer.Conv2d(3, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), make(),
                                  layer.MaxPool2d(2), layer.Conv2d(8, 16, 3, padding=1, bias=False),
                                  layer.BatchNorm2d(16), make(), layer.Flatten(), layer.Linear(16 * 9, 5))
        functional.set_step_mode(self, step_mode)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.weight, 1.5, 0.2)
                nn.init.normal_(m.bias, 0.4, 0.2)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("method", ["neuron", "compress", "recompute"])
@pytest.mark.parametrize("groups", [2, 8])
def test_it_is_at_home_in_retrofitted_nets(method, groups):
    plain, x = Net(groups), drawn(5, (2, 3, 6, 6))
    net = copy.deepcopy(plain)
    other = nn.Sequential(net, neuron.LIFNode(step_mode="m"))  # the method "neuron" wants something to change
    sj_memext.retrofit(other, method)
    found = []
    for model in (plain, net):
        seen = []
        hook = model.body[2].register_forward_hook(lambda m, args, spikes, seen=seen: seen.append(spikes))
        out = model(x)
        out.square().sum().backward()
        hook.remove()
        assert_fires(seen[0])
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert error(b, a) <= 1e-5, (i, error(b, a))  # other order of a float32 sum in the norm's gradient
    functional.reset_net(other)
    assert type(net.body[2]) is neuron.SharedLIFNode


@pytest.mark.skipif(native.unavailable() is not None, reason=f"needs the CPU kernels: {native.unavailable()}")
@pytest.mark.parametrize("method", ["compress", "recompute"])
def test_what_the_neuron_keeps_in_a_retrofitted_net(method):
    """recompute: of its input the norm's node and no tensor; both: its spikes as bits, in the order of its output."""
    net, x = Net(2), drawn(5, (2, 3, 6, 6))
    sj_memext.retrofit(net, method)
    spikes = net.body[2](net.body[1](net.body[0](x)))
    node = spikes.grad_fn
    assert (node.kept.link is not None) == (method == "recompute")
    kept = [t for t in node.saved_tensors if t is not None]
    expected = {"recompute": 0, "compress": spikes.numel() * 4}[method] + spikes.numel() // 8
    assert sum(t.numel() * t.element_size() for t in kept) == expected
    pooled = net.body[3](spikes)
    assert pooled.grad_fn is not None and net.body[2].v.shape == (2, 4, 6, 6)


@pytest.mark.parametrize("method", ["checkpoint", "reverse"])
@pytest.mark.parametrize("shared_object", [False, True], ids=["channels", "layers and channels"])
def test_unrolled(method, shared_object):
    """temporal.unroll rebuilds steps from their bits, call by call; the object may be called several times a step."""
    ref = SpikingJelly(4 / 3, False, 0.8, None)
    x = drawn(12, (2, 8, 5, 5))
    found = []
    for how in ("store", method):
        torch.manual_seed(3)
        net = Deep(node(2, ref), 4 if shared_object else 1)
        leaf = x.clone().requires_grad_()
        out = temporal.unroll(net, leaf, method=how)
        out.square().mul(torch.arange(1.0, 6.0)).sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in net.parameters())])
    assert_bit_equal(found[1][0], found[0][0])
    assert_fires(found[0][0])
    for a, b in zip(*found, strict=True):
        assert error(b, a) <= 1e-5


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [0, -2, 1.5, "2", True, None])
def test_groups_that_are_no_count_are_refused(groups):
    with pytest.raises(MemextError, match="SharedLIFNode: groups is"):
        neuron.SharedLIFNode(groups)


@pytest.mark.parametrize("mode, shape, words", [
    ("m", (3, 2, 6), r"C = 6 channels .*groups=4"), ("s", (2, 6, 3), r"C = 6 channels .*groups=4"),
    ("m", (3, 6), r"rank 2 or more.*groups=4"), ("s", (6,), r"rank 2 or more.*groups=4"),
])
def test_input_that_cannot_be_split_is_refused(mode, shape, words):
    n = neuron.SharedLIFNode(4, step_mode=mode)
    for _ in range(2):
        with pytest.raises(MemextError, match=words):
            n(torch.randn(shape))
        n.v_threshold = torch.nn.Parameter(torch.tensor(1.0))  # the framework's equations refuse it, too
    assert n.v == 0.0, "the state is as it was"
