"""Reversible in time and in depth at once (T-RevSNN's Table 6), and RevSNN neurons inside reversible blocks: each
against plain autograd of the same network."""
import copy

import pytest
import torch
from helpers import assert_bit_equal
from reversible_nets import assert_gradients_close, gradients, weighted
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.nn.functional import cross_entropy

import sj_memext
from shared_core.errors import MemextError
from shared_core.memory import measure
from shared_core.reversible import ReversibleSequence as Sequence
from sj_memext.layer import ReversibleBlock, ReversibleSequence
from sj_memext.model import t_revsnn
from sj_memext.neuron import ReversibleLIFNode

CHANNELS = (8, 12, 16)
WAYS = {"none": (False, False), "time": (True, False), "depth": (False, True), "both": (True, True)}
TIME = 1e-5   # what the states may be off (Columns, tolerance)
DEPTH = 1e-6  # inputs come back bit for bit; sums of gradients are rounded in another order


def build(way="both", coupled=2, variant="cifar", **options):
    torch.manual_seed(0)
    net = t_revsnn(CHANNELS, 6, variant=variant, kernel_size=3, coupled=coupled, **options)
    with torch.no_grad():
        for decay in net.columns.decays:
            decay.uniform_(0.3, 0.9)
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.mul_(1.7)
    net.columns.reversible, depth = WAYS[way]
    for m in net.modules():
        if isinstance(m, Sequence):
            m.reversible = depth
    return net


def images(seed=1):
    return torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(seed))


def step(net, x, dtype=None):
    net.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = cross_entropy(net(x), torch.arange(4) % 6)
    loss.backward()
    return loss.detach(), gradients(net)


# ---- columns of coupled blocks ----

@pytest.mark.parametrize("way", ["time", "depth", "both"])
def test_equals_plain_autograd(way):
    plain, net = build("none"), build(way)
    for seed in (1, 2):  # the first step checks the blocks, the second does not
        (loss, found), (wanted_loss, wanted) = step(net, images(seed)), step(plain, images(seed))
        assert torch.equal(loss, wanted_loss)
        assert_gradients_close(found, wanted, DEPTH if way == "depth" else TIME)
    buffers = dict(plain.named_buffers())
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers()), "statistics move once a step"
    rates = [net.columns.neuron.spike(v).mean() for v in net.columns(net.encode(images()))]
    assert all(0.05 < rate < 0.95 for rate in rates)


def test_events():
    x = torch.randn(5, 4, 2, 14, 9).abs().round()
    found = {}
    for way in ("none", "both"):
        net = build(way, variant="events", T=5)
        cross_entropy(net(x), torch.arange(4)).backward()
        found[way] = gradients(net)
    assert_gradients_close(found["both"], found["none"], TIME)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    (loss, found), (wanted_loss, wanted) = (step(build(way), images(), dtype) for way in ("both", "none"))
    assert torch.equal(loss, wanted_loss)
    # weights of several columns sum half-precision gradients in another order
    assert_gradients_close(found, wanted, 8 * torch.finfo(dtype).eps)


def test_compressed():
    net, plain = build("both"), build("none")
    sj_memext.retrofit(net, "compress")
    (loss, found), (wanted_loss, wanted) = step(net, images()), step(plain, images())
    assert torch.equal(loss, wanted_loss)
    assert_gradients_close(found, wanted, TIME)
    sj_memext.restore(net)
    assert_gradients_close(step(net, images())[1], wanted, TIME)


def test_memory_does_not_grow_with_blocks_nor_much_with_columns():
    """Peak of a step less gradients. Two more blocks a stage: plain keeps them all in every column."""
    def peak(way, coupled, T=4):
        net = t_revsnn((8, 8), 4, T, variant="mnist", kernel_size=3, coupled=coupled, encoding="same")
        net.columns.reversible, depth = WAYS[way]
        for m in net.modules():
            if isinstance(m, Sequence):
                m.reversible, m.check = depth, False
        x = torch.randn(8, 1, 24, 24)
        own = sum(p.numel() * p.element_size() for p in net.parameters())
        found = measure(lambda: net(x).sum().backward(), model=net, timeline=False)
        return found.peak_bytes - own
    few, many = ({way: peak(way, coupled) for way in WAYS} for coupled in (1, 4))
    print(few, many)
    grown = {way: many[way] - few[way] for way in WAYS}
    assert grown["both"] < 0.02 * grown["none"] and grown["depth"] < 0.3 * grown["none"]
    assert many["both"] < 0.75 * min(many["time"], many["depth"]) and many["both"] < many["none"] / 10


def test_each_block_is_checked_in_the_first_step_only():
    """Columns put attributes of what they run again back; that the check was done must survive."""
    net, calls = build("both"), []
    first = net.columns.stages[0][0].blocks.blocks[0].f
    first.register_forward_hook(lambda *_: calls.append(1))
    step(net, images())
    before = len(calls)
    step(net, images())
    assert before == 4 and len(calls) - before == 3, "forward, again in the column, again in the block; and the check"


def test_check_invertible_covers_both():
    net = build()
    before = {name: b.clone() for name, b in net.named_buffers()}
    assert net.check_invertible(images())
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())
    broken = copy.deepcopy(net)
    for m in broken.modules():
        if isinstance(m, Sequence):
            m.grid = None
    assert not broken.check_invertible(images()), "sums that are rounded"
    small = build(tolerance=float("inf"))
    with torch.no_grad():
        for decay in small.columns.decays:
            decay.fill_(1e-3)
    assert not small.check_invertible(images()), "decays that are divided by"


@pytest.mark.parametrize("options, words", [
    ({"channels": (8, 9)}, "9 channels cannot be split"), ({"coupled": 0}, "coupled=0"),
    ({"coupled": 1.5}, "coupled=1.5"),
], ids=["odd", "none", "float"])
def test_bad_options(options, words):
    with torch.device("meta"), pytest.raises(MemextError, match=words):
        t_revsnn(**{"channels": (8, 8), "coupled": 2, **options})


def test_a_value_out_of_range_names_the_block():
    net = build()
    with torch.no_grad():
        net.columns.stages[1][2].blocks.blocks[1].g.last[1].bias.fill_(3000.0)
    with pytest.raises(MemextError, match=r"after block 1, G is 3.*below 1024"):
        step(net, images())
    assert all(p.grad is None for p in net.columns.parameters())


# ---- two processes ----

CASES = [(way, coupled) for way in ("both", "time", "none") for coupled in (2, None)]


def case(way, coupled):
    net = build(way, coupled)
    return net, images()


def _train(rank, path, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for way, coupled in CASES:
        net, x = case(way, coupled)
        wrapped = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):  # DDP says in the second pass that a parameter got no gradient in the first
            wrapped.zero_grad()
            cross_entropy(wrapped(x[rank * 2:rank * 2 + 2]), torch.arange(2)).backward()
        results[rank, way, coupled] = {n: p.grad.numpy() for n, p in net.named_parameters()}
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    """The mean of the gradients of both halves, each under plain autograd; reversible=False has to work as well."""
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_train, (tmp_path / "rendezvous", results), nprocs=2)
        found = {name: {n: torch.from_numpy(g) for n, g in grads.items()} for name, grads in results.items()}
    for way, coupled in CASES:
        halves = []
        for rank in range(2):
            net, x = case("none", coupled)
            cross_entropy(net(x[rank * 2:rank * 2 + 2]), torch.arange(2)).backward()
            halves.append(gradients(net))
        wanted = {n: (g + halves[1][n]) / 2 for n, g in halves[0].items()}
        assert_gradients_close(found[0, way, coupled], wanted, TIME)
        assert all(torch.equal(g, found[1, way, coupled][n]) for n, g in found[0, way, coupled].items())


# ---- RevSNN neurons inside reversible blocks ----

def branch(width, **options):
    return nn.Sequential(ReversibleLIFNode(2, 1.7, alpha=0.2, v_threshold=0.6, split_dim=1, **options),
                         layer.Conv2d(width, width, 3, padding=1, bias=False), layer.BatchNorm2d(width))


def sequence(blocks=4, reversible=True):
    torch.manual_seed(3)
    net = ReversibleSequence([ReversibleBlock(branch(4), branch(4)) for _ in range(blocks)], reversible=reversible)
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for block in net.blocks:
            block.f[2].weight.fill_(0.4)
            block.g[2].weight.fill_(0.4)
    return net


def run(net, x, dtype=None):
    net.zero_grad()
    functional.reset_net(net)
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = net(x)
    weighted(y).backward()
    return y.detach(), gradients(net, x)


@pytest.mark.parametrize("method", [None, "compress"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_reversible_neurons_in_reversible_blocks(dtype, method):
    x, net, plain = torch.randn(5, 3, 8, 6, 5), sequence(), sequence(reversible=False)
    if method:
        sj_memext.retrofit(net, method)
    for _ in range(2):
        (y, found), (wanted_y, wanted) = run(net, x, dtype), run(plain, x, dtype)
        assert_bit_equal(y, wanted_y)
        # the same operations on the same values; only the halves' gradients lie elsewhere in memory
        assert_gradients_close(found, wanted, DEPTH if dtype is None else 2 * torch.finfo(dtype).eps)
    assert net.check_invertible(x)


def test_against_the_equations_written_out():
    """The neuron's own plain form (backend "reference") in the blocks, under plain autograd in float64."""
    x = torch.randn(3, 2, 8, 6, 5)
    net = sequence(2)
    y, found = run(net, x)
    double = sequence(2, reversible=False).double()
    wanted_y, wanted = run(double, x.double())
    # float32 against float64: spikes are equal, or the distance would be 0.1 and more
    assert (y - wanted_y).abs().max() < 1e-3
    assert_gradients_close(found, wanted, 1e-3)


def test_memory_is_one_block_s():
    x = torch.randn(5, 4, 8, 12, 12)
    peaks = []
    for blocks in (2, 8):
        net = sequence(blocks)
        run(net, x)  # the first step checks every block
        functional.reset_net(net)
        own = sum(p.numel() * p.element_size() for p in net.parameters())
        net.zero_grad()
        found = measure(lambda net=net: net(x.detach().requires_grad_()).sum().backward(), timeline=False)
        peaks.append(found.peak_bytes - own)
    assert peaks[1] - peaks[0] < 6 * 2 * 64 * 4, "of a block more: its largest values and its statistics"


def test_a_neurons_input_out_of_range_is_named():
    net = sequence(2)
    with torch.no_grad():
        net.blocks[0].g[2].weight.fill_(100.0)
    y = net(torch.randn(5, 3, 8, 6, 5))
    with pytest.raises(MemextError):
        y.sum().backward()
    assert all(p.grad is None for p in net.parameters())
