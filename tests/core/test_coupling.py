"""Additive couplings without a framework: exact sums, one gradient, nothing moved twice, clear errors."""
import copy
import io
import math
import pickle

import pytest
import torch
from helpers import assert_bit_equal
from hypothesis import given
from hypothesis import strategies as st
from reversible_nets import GRID, assert_gradients_close, gradients, on_grid, reference, weighted
from torch import nn
from torch.utils.checkpoint import checkpoint

from shared_core.errors import MemextError
from shared_core.memory import measure
from shared_core.reversible import ReversibleBlock, ReversibleSequence, is_rebuilding
from shared_core.reversible._grid import limit, rounded

# The same operations on the same values; what is left is the order of sums where autograd hands over slices.
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-13}


class Steep(nn.Module):
    """A step with a surrogate gradient: one flipped value is seen."""

    def forward(self, x):
        soft = torch.sigmoid(4 * (x - 0.3))
        return (x >= 0.3).to(x.dtype) + soft - soft.detach()


def branch(width=3, norm=True, drop=0.0):
    layers = [Steep(), nn.Conv2d(width, width, 3, padding=1, bias=not norm),
              nn.BatchNorm2d(width) if norm else nn.Identity()]
    return nn.Sequential(*layers, nn.Dropout(drop)) if drop else nn.Sequential(*layers)


def sequence(depth=3, width=3, norm=True, drop=0.0, dtype=torch.float32, **options):
    torch.manual_seed(depth)
    blocks = [ReversibleBlock(branch(width, norm, drop), branch(width, norm, drop)) for _ in range(depth)]
    return ReversibleSequence(blocks, **options).to(dtype)


def run(net, x, seed=3):
    """Output and gradients, from the same random numbers."""
    torch.manual_seed(seed)
    net.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = net(x)
    weighted(y).backward()
    return y.detach(), gradients(net, x)


# ---- the grid ----

@given(st.floats(-500, 500, width=32), st.floats(-500, 500, width=32))
def test_sums_on_the_grid_are_exact(x, f):
    x, f = rounded(torch.tensor([x, f]), GRID, torch.float32)
    y = x + f
    assert abs(y.item()) < limit(GRID, torch.float32) == 1024
    assert y.double() == x.double() + f.double() and y - f == x


def test_the_grid_rounds_to_the_nearest_and_off_it_sums_are_not_exact():
    x, f = torch.randn(2, 10000) * 3
    assert torch.equal(rounded(x, GRID, torch.float32), torch.round(x * 2**14) / 2**14)
    assert (rounded(x, GRID, torch.float32) - x).abs().max() <= GRID / 2
    assert ((x + f) - f != x).double().mean() > 0.1, "without a grid, many values do not come back"
    q, g = rounded(x, GRID, torch.float32), rounded(f, GRID, torch.float32)
    assert torch.equal((q + g) - g, q)
    assert rounded(x.half(), GRID, torch.float32).dtype == torch.float32
    assert limit(2.0**-12, torch.float32) == 4096 and limit(GRID, torch.float64) == 2.0**39


# ---- values and gradients ----

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (1, 6, 3, 3), (3, 6, 9, 1)], ids=str)
@pytest.mark.parametrize("depth", [1, 5])
def test_values_and_gradients_are_those_of_the_equation(depth, shape, dtype):
    net, x = sequence(depth, dtype=dtype), torch.randn(shape, dtype=dtype)
    wanted_net = copy.deepcopy(net)
    y, found = run(net, x)
    leaf = x.clone().requires_grad_()
    wanted = reference(wanted_net.blocks, leaf, 1)
    weighted(wanted).backward()
    assert_bit_equal(y, wanted.detach())
    assert_gradients_close(found, gradients(wanted_net, leaf), CLOSE[dtype])
    fired = (on_grid(x) >= 0.3).double().mean()
    assert 0.1 < fired < 0.6, fired


def test_reversible_or_not_is_the_same_to_the_last_bit():
    x = torch.randn(4, 6, 5, 7)
    y, found = run(sequence(6), x)
    y2, wanted = run(sequence(6, reversible=False), x)
    assert_bit_equal(y, y2)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert_bit_equal(found[name], grad, name)


def test_half_input_has_a_float32_stream():
    net, x = sequence(2), torch.randn(2, 6, 4, 4).half()
    x.requires_grad_()
    y = net(x)
    y.sum().backward()
    assert y.dtype == torch.float32 and x.grad.dtype == torch.float16


def test_strides_of_the_input_do_not_matter():
    net, x = sequence(2), torch.randn(5, 6, 7, 4)
    y, found = run(net, x)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(0, 3).contiguous().transpose(0, 3),
                  torch.randn(5, 12, 7, 4)[:, ::2].copy_(x)):
        assert not other.is_contiguous()
        y2, found2 = run(copy.deepcopy(net), other)
        assert_bit_equal(y2, y)
        assert_gradients_close(found2, found, 1e-7)  # the loss adds up in another order


def test_an_empty_batch():
    net = sequence(2, norm=False)
    x = torch.randn(0, 6, 4, 4, requires_grad=True)
    y = net(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.shape == x.shape


def test_a_block_alone_is_a_sequence_of_one():
    net, x = sequence(1), torch.randn(4, 6, 5, 5)
    y, found = run(net, x)
    y2, found2 = run(copy.deepcopy(net).blocks[0], x)
    assert_bit_equal(y2, y)
    assert_bit_equal(found2["x"], found["x"])


def test_channels_may_be_any_dimension():
    net = ReversibleSequence([ReversibleBlock(nn.Linear(4, 4), nn.Linear(4, 4))], split_dim=2)
    x = torch.randn(3, 5, 8, requires_grad=True)
    wanted = reference(net.blocks, x, 2)
    assert_bit_equal(net(x).detach(), wanted.detach())


@pytest.mark.parametrize("depth", [1, 16, 48])
def test_inputs_come_back_bit_for_bit(depth):
    net, x = sequence(depth).train(), torch.randn(3, 6, 6, 6)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        y = copy.deepcopy(net)(x)  # statistics of its own
        assert_bit_equal(net.invert(y), on_grid(x))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.check_invertible(x)


def test_without_a_grid_they_do_not():
    net, report = sequence(24, grid=None), []
    x = torch.randn(3, 6, 6, 6)
    assert not net.check_invertible(x, report) and "without a grid" in report[0]
    assert not torch.equal(net.invert(copy.deepcopy(net)(x).detach()), x)


# ---- memory ----

def test_only_the_output_is_kept_however_many_blocks():
    for depth in (1, 4, 12):
        net, x = sequence(depth, width=8), torch.randn(4, 16, 12, 12, requires_grad=True)
        net(x).sum().backward()  # the first step checks every block
        report = measure(lambda net=net, x=x: net(x).sum().backward())
        out = x.numel() * 4
        assert out <= report.saved_bytes <= out + 64 * (2 * depth + 1), report.saved_bytes  # peaks, one number each
        plain = sequence(depth, width=8, reversible=False)
        kept = measure(lambda plain=plain, x=x: plain(x).sum().backward()).saved_bytes
        assert kept > 2 * depth * out  # F and G each keep at least two tensors of half the size


# ---- nothing happens twice ----

def test_statistics_move_once_and_dropout_is_the_same():
    x, nets = torch.randn(4, 6, 5, 5), [sequence(4, drop=0.4), sequence(4, drop=0.4, reversible=False)]
    for step in range(3):
        (y, found), (y2, wanted) = (run(net, x, seed=step) for net in nets)
        assert_bit_equal(y, y2)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    buffers, wanted = (dict(net.named_buffers()) for net in nets)
    assert all(torch.equal(buffers[name], wanted[name]) for name in wanted)
    assert buffers["blocks.0.f.2.num_batches_tracked"] == 3


def test_random_numbers_go_on_as_if_nothing_was_rebuilt():
    after = []
    for reversible in (True, False):
        run(sequence(2, drop=0.4, reversible=reversible), torch.randn(4, 6, 5, 5))
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_hooks_of_parameters_run_once():
    net, seen = sequence(3), []
    for name, p in net.named_parameters():
        p.register_hook(lambda grad, name=name: seen.append(name))
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(f"{name}, accumulated"))
    run(net, torch.randn(4, 6, 5, 5))
    assert len(seen) == len(set(seen)) == 2 * len(list(net.parameters()))


def test_forward_hooks_can_tell_a_rebuilt_pass():
    net, seen = sequence(2), []
    net.blocks[0].f[0].register_forward_hook(lambda *a: seen.append(is_rebuilding()))
    run(net, torch.randn(4, 6, 5, 5))
    run(net, torch.randn(4, 6, 5, 5))
    assert seen == [False, True, True, False, True]  # the first step checks


def test_gradients_add_up_over_passes():
    net, x = sequence(2), torch.randn(4, 6, 5, 5)
    _, once = run(net, x)
    y = net(x)
    weighted(y).backward(retain_graph=True)
    weighted(y).backward()
    for name, grad in gradients(net).items():
        torch.testing.assert_close(grad, 3 * once[name], rtol=1e-6, atol=0)


# ---- parameters ----

@pytest.mark.parametrize("frozen", ["first block", "all of F", "everything"])
def test_frozen_parameters(frozen):
    nets = [sequence(3), sequence(3, reversible=False)]
    for net in nets:
        part = {"first block": [net.blocks[0]], "all of F": [b.f for b in net.blocks], "everything": [net]}[frozen]
        for module in part:
            module.requires_grad_(False)
    (_, found), (_, wanted) = (run(net, torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(1)))
                               for net in nets)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_input_without_gradient_and_no_gradient_at_all():
    net, plain = sequence(3), sequence(3, reversible=False)
    x = torch.randn(4, 6, 5, 5)
    for n in (net, plain):
        weighted(n(x)).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), plain.parameters()))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = net.eval()(x)
        assert not y.requires_grad and torch.equal(y, plain.eval()(x).detach())


@pytest.mark.parametrize("shared", ["block twice", "F is G", "a weight"])
def test_shared_parts(shared):
    nets = []
    for reversible in (True, False):
        net = sequence(3, reversible=reversible)
        if shared == "block twice":
            net = ReversibleSequence([*net.blocks, net.blocks[0]], reversible=reversible)
        elif shared == "F is G":
            net.blocks[1].g = net.blocks[1].f
        else:
            net.blocks[2].f[1].weight = net.blocks[0].g[1].weight
        nets.append(net)
    x = torch.randn(4, 6, 5, 5)
    (y, found), (y2, wanted) = (run(net, x) for net in nets)
    assert_bit_equal(y, y2)
    assert_gradients_close(found, wanted, 1e-6)  # of two uses of a weight, another one may be added first
    for name, b in nets[0].named_buffers():
        assert torch.equal(b, dict(nets[1].named_buffers())[name]), name


def test_a_call_with_other_parameters():
    net, plain, x = sequence(2), sequence(2, reversible=False), torch.randn(4, 6, 5, 5)
    other = {k: torch.randn_like(v).requires_grad_() for k, v in net.named_parameters()}
    found = []
    for n in (net, plain):
        y = torch.func.functional_call(n, other, x)
        found.append(torch.autograd.grad(weighted(y), list(other.values())))
    assert all(torch.equal(a, b) for a, b in zip(*found))


# ---- company ----

@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_torch_checkpoint(reentrant):
    x = torch.randn(4, 6, 5, 5)
    wanted_y, wanted = run(sequence(3, norm=False, drop=0.3), x)
    net = sequence(3, norm=False, drop=0.3)
    torch.manual_seed(3)
    leaf = x.clone().requires_grad_()
    y = checkpoint(net, leaf, use_reentrant=reentrant)
    weighted(y).backward()
    found = gradients(net, leaf)
    assert_bit_equal(y.detach(), wanted_y)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_autocast_leaves_the_stream_in_float32():
    x, found, dtypes = torch.randn(4, 6, 5, 5), [], []
    for reversible in (True, False):
        net = sequence(4, norm=False, reversible=reversible)
        net.blocks[0].f.register_forward_hook(lambda m, a, out: dtypes.append((a[0].dtype, out.dtype)))
        with torch.autocast("cpu", torch.bfloat16):
            net(x)  # leaves weights cast without a graph in autocast's cache, if there is one
            y = net(x.requires_grad_())
        x.grad = None
        weighted(y).backward()  # outside of autocast
        found.append((y.detach(), gradients(net, x)))
    assert set(dtypes) == {(torch.float32, torch.bfloat16)}
    assert_bit_equal(found[0][0], found[1][0])
    assert found[0][0].dtype == torch.float32
    # autocast casts a weight once for both uses and sums their gradients in half there; here every use has its own cast
    assert_gradients_close(found[0][1], found[1][1], 1e-6)


def test_a_sequence_inside_a_block():
    nets = []
    for reversible in (True, False):
        torch.manual_seed(0)
        inner = ReversibleSequence([ReversibleBlock(branch(2), branch(2)) for _ in range(2)], reversible=reversible)
        nets.append(ReversibleSequence([ReversibleBlock(inner, branch(4)), ReversibleBlock(branch(4), branch(4))],
                                       reversible=reversible))
    x = torch.randn(3, 8, 5, 5)
    (y, found), (y2, wanted) = (run(net, x) for net in nets)
    assert_bit_equal(y, y2)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_mode_of_the_forward_pass_counts():
    nets, x = [sequence(3, drop=0.3), sequence(3, drop=0.3, reversible=False)], torch.randn(4, 6, 5, 5)
    found = []
    for net in nets:
        torch.manual_seed(0)
        y = net(x)
        net.eval()
        weighted(y).backward()
        assert not any(m.training for m in net.modules())
        found.append(gradients(net))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_copies_pickles_and_keys():
    net, x = sequence(2), torch.randn(4, 6, 5, 5)
    run(net, x)
    assert {k.split(".")[0] for k in net.state_dict()} == {"blocks"} and "blocks.1.g.1.weight" in net.state_dict()
    y, wanted = run(copy.deepcopy(net), x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(run(other, x)[0], y)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    fresh = sequence(2)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    y2, found = run(fresh, x)
    assert torch.equal(y, y2) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_torch_compile_goes_around_it():
    torch.compiler.reset()
    net, x = sequence(2), torch.randn(4, 6, 5, 5)
    y, wanted = run(copy.deepcopy(net), x)
    y2, found = run(torch.compile(net, backend="eager"), x)
    assert_bit_equal(y, y2)
    assert all(torch.equal(found[f"_orig_mod.{name}"], grad) for name, grad in wanted.items() if name != "x")


# ---- errors ----

class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def with_f(make):
    return ReversibleSequence([ReversibleBlock(branch(), branch()), ReversibleBlock(Returns(make), branch())])


@pytest.mark.parametrize("make, words", [
    (lambda x: x[..., 1:], "block 1, F: took .* returned .* must have its shape"),
    (lambda x: x.double(), "block 1, F: returned torch.float64; torch.float32"),
    (lambda x: x > 0, "block 1, F: returned torch.bool"),
    (lambda x: (x, x), "block 1, F: returned tuple"),
    (lambda x: x.relu_(), "block 1, F: changed its input in place"),
], ids=["shape", "dtype", "bool", "tuple", "in place"])
def test_what_cannot_be_added_is_refused(make, words):
    for call in (lambda net, x: net(x), lambda net, x: net.check_invertible(x), lambda net, x: net.eval()(x)):
        with pytest.raises(MemextError, match=words):
            call(with_f(make), torch.randn(2, 6, 4, 4))


@pytest.mark.parametrize("x, words", [
    (torch.randn(2, 5, 4, 4), "5 channels .dimension 1 .* even number"),
    (torch.randn(6), "shape .6,."),
    (torch.zeros(2, 6, 4, 4, dtype=torch.int64), "torch.int64.*x.float"),
    ([1.0], "the input is list"),
], ids=["odd", "rank", "int", "list"])
def test_bad_input(x, words):
    with pytest.raises(MemextError, match=words):
        sequence(1)(x)


def test_bad_options():
    f = nn.Identity()
    for make, words in ((lambda: ReversibleBlock(f, torch.relu), "g is"),
                        (lambda: ReversibleSequence([]), "no blocks"),
                        (lambda: ReversibleSequence([f]), "block 0 is Identity"),
                        (lambda: ReversibleBlock(f, f, grid=0.1), "grid is 0.1; a power of two"),
                        (lambda: ReversibleBlock(f, f, grid=-2.0), "power of two"),
                        (lambda: ReversibleBlock(f, f, split_dim=-1), "split_dim is -1")):
        with pytest.raises(MemextError, match=words):
            make()


@pytest.mark.parametrize("value", [2000.0, -2000.0])
def test_a_value_out_of_range_is_an_error_that_says_where(value):
    net = sequence(3, norm=False)
    with torch.no_grad():
        net.blocks[1].g[1].bias.fill_(value)
    x = torch.randn(2, 6, 4, 4)
    y = net(x)
    with pytest.raises(MemextError, match=r"after block 1, G is 2\d\d\d; below 1024 .*grid 2\^-14"):
        y.sum().backward()
    assert all(p.grad is None for p in net.parameters())
    report = []
    assert not net.check_invertible(x, report) and "below 1024" in report[0]
    ReversibleSequence(net.blocks, grid=2**-12)(x).sum().backward()
    with pytest.raises(MemextError, match="in the input is nan"):
        sequence(1, norm=False)(torch.full((1, 6, 2, 2), math.nan)).sum().backward()


def test_an_output_changed_in_place_is_an_error():
    for change in (lambda y, net: y.add_(1), lambda y, net: net.blocks[0].f[1].weight.data_ptr() and
                   net.blocks[0].f[1].weight.detach().mul_(2)):
        net = sequence(2)
        y = net(torch.randn(2, 6, 4, 4))
        z = y * 1
        with torch.no_grad():
            change(y, net)
        with pytest.raises(MemextError, match="changed in place before the backward"):
            z.sum().backward()


def test_gradients_of_gradients_are_refused():
    net, x = sequence(2), torch.randn(2, 6, 4, 4, requires_grad=True)
    with pytest.raises(MemextError, match=r"create_graph=True.*reversible=False"):
        torch.autograd.grad(net(x).sum(), x, create_graph=True)


class Remembers(nn.Module):
    """Holds a state that no framework knows of."""

    def __init__(self):
        super().__init__()
        self.v = 0.0

    def forward(self, x):
        self.v = self.v + x.detach()
        return x + self.v


def drawing(generator):
    return lambda x: x + torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize("make", [Remembers, lambda: Returns(drawing(torch.Generator().manual_seed(0)))],
                         ids=["state", "own generator"])
def test_what_cannot_be_repeated_is_named_in_the_first_step(make):
    blocks = [ReversibleBlock(branch(), branch()), ReversibleBlock(branch(), make())]
    x, report = torch.randn(2, 6, 4, 4), []
    assert not ReversibleSequence(blocks).check_invertible(x, report)
    assert "block 1, G gives another output" in report[0]
    with pytest.raises(MemextError, match="block 1, G gives another output when it is run again"):
        ReversibleSequence(blocks)(x)
    ReversibleSequence(blocks, check=False)(x)
    ReversibleSequence(blocks, reversible=False)(x)


def test_a_tensor_that_learns_and_is_no_parameter_is_named():
    scale = torch.ones(1, requires_grad=True)
    with pytest.raises(MemextError, match="block 1, F uses a tensor that needs a gradient and is no parameter"):
        with_f(lambda x: x * scale)(torch.randn(2, 6, 4, 4))


def test_an_error_leaves_the_model_as_it_was():
    net = sequence(2)
    net.blocks[1].g = Returns(lambda x: x * 1 if not is_rebuilding() else x[1:])
    parameters, buffers = list(net.parameters()), [b.clone() for b in net.buffers()]
    with pytest.raises(MemextError, match="block 1, G: took"):
        net.check_invertible(torch.randn(2, 6, 4, 4))
    assert all(a is b for a, b in zip(net.parameters(), parameters))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers))
