"""T-RevSNN: the paper's sizes, the gradients of plain autograd in every variant, its memory and energy figures, and
what users do with it."""
import copy
import importlib
import pickle

import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate as host
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks._t_revsnn_counted import counted
from benchmarks.t_revsnn_memory import LARGE, SMALL, TABLE_2, per_image, states
from shared_core import surrogate
from shared_core.errors import MemextError
from shared_core.reversible.columns import Columns
from sj_memext import model
from sj_memext.model import t_revsnn
from sj_memext.model.t_revsnn_energy import energy
from sj_memext.model.t_revsnn_parts import Block, ScaledConv2d

GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-10}  # as in tests/core/test_columns.py
CHANNELS = (8, 12, 16, 20)
VARIANTS = {"imagenet": (4, 3, 37, 41), "cifar": (4, 3, 20, 17), "mnist": (3, 1, 28, 28), "events": (5, 3, 2, 17, 21)}


def build(variant="cifar", dtype=torch.float32, seed=0, **options):
    """A net at a usual firing rate, with decays spread as after some training."""
    torch.manual_seed(seed)
    options.setdefault("T", 5 if variant == "events" else 4)
    net = t_revsnn(CHANNELS, 6, variant=variant, kernel_size=3, **options).to(dtype)
    with torch.no_grad():
        for decay in net.columns.decays:
            decay.uniform_(0.3, 0.9)
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.mul_(1.7)
    return net


def sample(variant="cifar", dtype=torch.float32):
    x = torch.randn(VARIANTS[variant])
    return (x.abs().round() if variant == "events" else x).to(dtype)


def step(net, x):
    net.zero_grad()
    loss = cross_entropy(net(x), torch.arange(len(x) if x.dim() == 4 else x.shape[1]) % 6)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def apart(found, wanted):
    floor = 1e-5 * max(g.norm() for g in wanted.values())  # a gradient that is zero but for rounding
    return max(((found[n] - g).norm() / g.norm().clamp_min(floor)).item() for n, g in wanted.items())


# ---- the network --------------------------------------------------------------------------------------------------

def test_parameters_of_the_papers_configurations():
    with torch.device("meta"):
        assert sum(p.numel() for p in t_revsnn().parameters()) == 15_215_912
        assert sum(p.numel() for p in t_revsnn((96, 192, 384, 512)).parameters()) == 29_786_312
        assert sum(p.numel() for p in t_revsnn(encoding="same").parameters()) == 15_215_912


def test_a_block_by_hand():
    """x + gamma * DW(PW(s(PW(DW(s(x)))))), weights standardised and scaled by gain / sqrt(fan-in); no batch norm."""
    net = t_revsnn(CHANNELS, 6, variant="cifar", rezero=0.7)
    block = net.columns.stages[0][1].blocks[0]
    assert isinstance(block, Block) and not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    x = torch.randn(2, CHANNELS[1], 9, 9)
    (deep, wide), (narrow, deep2) = block.first, block.last
    assert deep.groups == deep.in_channels and deep.kernel_size == (5, 5) and wide.out_channels == 4 * CHANNELS[1]

    def standard(conv):
        w = conv.weight.double()
        w = w - w.mean((1, 2, 3), keepdim=True)
        w = w / (w.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        return (w * conv.gain * w[0].numel() ** -0.5).float()

    conv = torch.nn.functional.conv2d
    fire = lambda v: (v >= 0.5).float()  # noqa: E731
    hidden = conv(conv(fire(x), deep.weight, deep.bias, padding=2, groups=deep.groups), standard(wide), wide.bias)
    out = conv(conv(fire(hidden), standard(narrow), narrow.bias), deep2.weight, deep2.bias, padding=2,
               groups=deep2.groups)
    assert 0.02 < fire(hidden).mean() < 0.9
    torch.testing.assert_close(block(x), x + 0.7 * out, rtol=1e-4, atol=1e-4)


def test_which_weights_columns_share():
    """Only the last pair of each stage's second block; the authors' code reuses the same."""
    net = t_revsnn(CHANNELS, 6, variant="cifar")
    owners = {}
    for t, column in enumerate(net.columns.stages):
        for name, p in column.named_parameters():
            owners.setdefault(id(p), []).append((t, name))
    shared = [names for names in owners.values() if len(names) > 1]
    assert all(len(names) == 4 and all(".blocks.1.last." in n for _, n in names) for names in shared)
    assert len(shared) == 4 * 5  # per stage: weight, bias, gain; weight, bias


def test_each_column_gets_its_group_of_an_image_that_is_encoded_once():
    net, x = build(), sample()
    calls = []
    net.stem.register_forward_hook(lambda m, args, out: calls.append(out))
    inputs = net.encode(x)
    assert len(calls) == 1 and torch.equal(torch.cat(inputs, 1), calls[0])
    assert [tuple(i.shape) for i in inputs] == [(4, 2, 10, 9)] * 4
    same = build(encoding="same").encode(x)
    assert all(i is same[0] for i in same) and same[0].shape[1] == CHANNELS[0]


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_plain_autograd(variant, dtype):
    net, x = build(variant, dtype), sample(variant, dtype)
    plain = copy.deepcopy(net)
    plain.columns.reversible = False
    with torch.no_grad():
        rates = [net.columns.neuron.spike(v).mean().item() for v in copy.deepcopy(net).columns(net.encode(x))]
    assert all(0.05 < r < 0.8 for r in rates), rates
    for _ in range(2):  # the second with running statistics and shapes seen before
        loss, found = step(net, x)
        wanted_loss, wanted = step(plain, x)
        assert torch.equal(loss, wanted_loss)
        missing = set(found) - set(wanted)
        assert all(n.startswith("columns.decays") and found[n].count_nonzero() == 0 for n in missing)
        assert set(wanted) <= set(found) and apart(found, wanted) <= GRADIENT[dtype]
    for (n, a), (_, b) in zip(net.named_buffers(), plain.named_buffers()):
        assert torch.equal(a, b), n


def test_gradients_after_decays_have_become_small():
    net, x = build(), sample()
    with torch.no_grad():
        for decay in net.columns.decays:
            decay[::2] = 1e-4
    plain = copy.deepcopy(net)
    plain.columns.reversible = False
    assert 0.4 < net.report()["kept share"] < 0.6 and net.check_invertible(x)
    assert apart(step(net, x)[1], {n: g for n, g in step(plain, x)[1].items()}) <= GRADIENT[torch.float32]
    net.columns.tolerance = float("inf")
    assert not net.check_invertible(x)


@pytest.mark.parametrize("function", [host.ATan(), host.Sigmoid(alpha=4.0), host.Rect(), surrogate.triangle(1.0)],
                         ids=lambda s: type(s).__name__)
def test_spikingjellys_surrogates(function):
    net = build(surrogate_function=function, v_threshold=0.6)
    assert net.check_invertible(sample())
    assert net.columns.neuron.v_threshold == 0.6


def test_trains():
    """Two classes of noise around two images are told apart after a few steps; the last column's scores are enough."""
    torch.manual_seed(2)
    net = t_revsnn((8, 8, 8), 2, 4, variant="cifar", kernel_size=3)
    centres, labels = torch.randn(2, 3, 8, 8), torch.arange(16) % 2
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = cross_entropy(net(centres[labels] + 0.3 * torch.randn(16, 3, 8, 8)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
    assert any((d - 0.5).abs().max() > 1e-3 for d in net.columns.decays), "decays learn"


# ---- figures of the paper -----------------------------------------------------------------------------------------

def test_memory_per_image_is_below_the_papers():
    """Table 2: 57.5 MB an image under float16, weights and gradients included at 64 images; half of it is ours."""
    found = per_image(batches=(2, 4))
    assert found["at batch 64, MB per image"] <= TABLE_2[SMALL]
    assert found["MB per image"] < 0.5 * TABLE_2[SMALL]


def growth(size: int, **options) -> int:
    """Bytes that the peak of four images has over that of two."""
    four, two = (counted(lambda: t_revsnn(SMALL, **options), batch, size)[0] for batch in (4, 2))
    return four - two


@pytest.mark.slow
def test_memory_per_image_of_the_large_one():
    assert per_image(channels=LARGE)["at batch 64, MB per image"] <= TABLE_2[LARGE]


@pytest.mark.slow
def test_memory_grows_by_an_eighth_of_a_byte_per_state_and_column():
    """T = 2 to 6 at 64x64: no state is kept there (decay 0.5)."""
    n = states(SMALL, 64)
    few, many = (growth(64, T=T, encoding="same") for T in (2, 6))
    assert (many - few) / 2 / 4 <= n / 8


@pytest.mark.slow
def test_growth_to_the_last_byte():
    """T = 4 to 8 at 64x64: the state of one column is kept, bits of the others, and at the peak, in the first column,
    (T-1)/T of the encoded image's gradient (float16) are there. Nothing else grows with T."""
    n, image = states(SMALL, 64), SMALL[0] * 16 * 16 * 2
    peaks, kept = {}, {}
    for T in (4, 8):
        peaks[T] = growth(64, T=T) / 2
        plan = t_revsnn((8, 8), T=T).columns.plan()[0]
        kept[T] = sum(len(channels) == 8 for channels in plan)  # columns whose states are kept: all decays are alike
    assert kept == {4: 0, 8: 1}
    bits = {T: T - 1 - kept[T] for T in peaks}
    wanted = 4 * n * (kept[8] - kept[4]) + n / 8 * (bits[8] - bits[4]) + image * (1 / 4 - 1 / 8)
    assert abs(peaks[8] - peaks[4] - wanted) <= 4 * 8, "to the bits' rounding to whole bytes, in each stage and column"


def test_energy_by_equation_13():
    """1.7 and 2.8 mJ; the paper names no firing rates: at 0.22 in every spiking layer both are within 10 %."""
    for channels, paper in ((SMALL, 1.7), (LARGE, 2.8)):
        with torch.device("meta"):
            net, x = t_revsnn(channels), torch.empty(1, 3, 224, 224)
        found = energy(net, x, rate=0.22)
        assert found.mj == pytest.approx(paper, rel=0.1) and found.rate == pytest.approx(0.22)
        first = found.layers[0]
        assert first.operations == 49 * 3 * channels[0] * 112 * 112
        assert first.mj == pytest.approx(first.operations * 4.6e-9)
    rest = sum(layer.operations for layer in found.layers[1:])
    assert found.mj == pytest.approx(first.mj + rest * 0.22 * 0.9e-9)


def test_energy_with_measured_rates():
    net, x = build().eval(), sample()
    found = energy(net, x)
    assert not net.training and 0.02 < found.rate < 0.6
    by_name = {layer.name: layer for layer in found.layers}
    seen = []
    net.columns.stages[2][1].down[0].register_forward_hook(lambda m, args, out: seen.append(args[0].mean().item()))
    with torch.no_grad():
        net(x)
    assert by_name["columns.stages.2.1.down.0"].rate == pytest.approx(seen[0])
    # a layer shared by the columns counts in each; a pair of convolutions has one rate
    assert sum(layer.name.endswith("blocks.1.last.1") for layer in found.layers) == 16
    pair = [by_name[f"columns.stages.1.0.blocks.0.first.{i}"].rate for i in (0, 1)]
    assert pair[0] == pair[1] > 0
    assert energy(net, torch.cat([x, x])).mj == pytest.approx(found.mj)
    assert all(layer.mj == pytest.approx(layer.operations * layer.rate * 0.9e-9)
               for layer in energy(build("events"), sample("events")).layers)


# ---- what users do ------------------------------------------------------------------------------------------------

def test_events_step_by_step_give_the_same_scores():
    net, x = build("events").eval(), sample("events")
    states_ = None
    with torch.no_grad():
        for t, frame in enumerate(x):
            states_ = net.step(t, frame, states_)
        assert torch.equal(net.scores(states_[-1]), net(x))


def test_state_dict_deepcopy_and_pickle():
    net, x = build().eval(), sample()
    other = build(seed=1).eval()
    other.load_state_dict(net.state_dict())
    wanted = net(x).detach()
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), wanted)
        last = twin.columns.stages[0][1].blocks[1].last
        assert last is twin.columns.stages[3][1].blocks[1].last, "still shared"
    torch.manual_seed(0)
    assert importlib.import_module("sj_memext.model").t_revsnn is t_revsnn is model.t_revsnn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    net, x = build(), sample()
    plain = copy.deepcopy(net)
    plain.columns.reversible = False
    with torch.autocast("cpu", dtype):
        loss, found = step(net, x)
        wanted_loss, wanted = step(plain, x)
    assert torch.equal(loss, wanted_loss)
    # Shared weights sum half-precision gradients of four columns in another order; the rest is equal to rounding.
    assert apart(found, wanted) <= 8 * torch.finfo(dtype).eps


def _train(rank, path, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    net = build()
    wrapped = nn.parallel.DistributedDataParallel(net)
    torch.manual_seed(10)
    x = torch.randn(4, 3, 16, 16)[rank * 2:rank * 2 + 2]
    for _ in range(2):
        wrapped.zero_grad()
        cross_entropy(wrapped(x), torch.arange(2)).backward()
    results[rank] = {n: p.grad.numpy() for n, p in net.named_parameters()}
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    """Gradients are the mean of those of the halves, each computed with the batch norm of its half."""
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_train, (tmp_path / "rendezvous", results), nprocs=2)
        found = [{n: torch.from_numpy(g) for n, g in results[rank].items()} for rank in range(2)]
    torch.manual_seed(10)
    x, halves = torch.randn(4, 3, 16, 16), []
    for rank in range(2):
        net = build()
        cross_entropy(net(x[rank * 2:rank * 2 + 2]), torch.arange(2)).backward()
        halves.append({n: p.grad for n, p in net.named_parameters()})
    wanted = {n: (g + halves[1][n]) / 2 for n, g in halves[0].items()}
    assert apart(found[0], wanted) <= GRADIENT[torch.float32]
    assert all(torch.equal(g, found[1][n]) for n, g in found[0].items())


def test_output_changed_in_place():
    """The scores may be changed; a state that backward needs may not."""
    net, x = build(), sample()
    out = net(x)
    out.mul_(2).sum().backward()
    states_ = net.columns(net.encode(x))
    with torch.no_grad():
        states_[0].zero_()
    with pytest.raises(MemextError, match="in place"):
        net.scores(states_[-1]).sum().backward()


@pytest.mark.parametrize(("options", "part"), [
    ({"variant": "imagnet"}, "variant='imagnet'; allowed: imagenet, cifar, mnist, events"),
    ({"T": 3}, r"T=3 does not divide channels\[0\]=64"), ({"T": 0}, "T=0"), ({"num_classes": 0}, "num_classes=0"),
    ({"channels": (64, 0)}, r"channels\[1\]=0"), ({"channels": (64,)}, "at least two stages"),
    ({"kernel_size": 4}, "kernel_size=4"), ({"encoding": "repeat"}, "encoding='repeat'"),
    ({"surrogate_function": host.PoissonPass()}, "0 or 1"),
], ids=lambda v: str(v)[:24])
def test_bad_arguments(options, part):
    with torch.device("meta"), pytest.raises(MemextError, match=part):
        t_revsnn(**options)


@pytest.mark.parametrize(("variant", "shape", "part"), [
    ("cifar", (2, 1, 32, 32), "C=3"), ("cifar", (3, 32, 32), r"images \[N, C, H, W\]"),
    ("cifar", (2, 3, 4, 32), "at least 8"), ("events", (4, 2, 2, 34, 34), "T=5"), ("events", (2, 2, 34, 34), "x_seq"),
])
def test_bad_inputs(variant, shape, part):
    with pytest.raises(MemextError, match=part):
        build(variant)(torch.zeros(shape))


def test_step_is_for_events():
    with pytest.raises(MemextError, match="encodes a whole image"):
        build().step(0, sample())


def test_neurons_with_a_state_are_refused_inside_stages():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = neuron.LIFNode()

        def forward(self, below, above):
            return self.neuron(below)

    net = Columns([[Stage()], [Stage()]], (3,))
    with pytest.raises(MemextError, match="LIFNode, which carries a state"):
        net(torch.randn(2, 4, 3, 5, 5))
    with torch.no_grad():
        net(torch.randn(2, 4, 3, 5, 5))


def test_standardised_weights_have_the_variance_they_should():
    conv = ScaledConv2d(16, 8, 3)
    w = conv.standardised()
    torch.testing.assert_close(w.mean((1, 2, 3)), torch.zeros(8), rtol=0, atol=1e-7)
    torch.testing.assert_close(w.square().sum((1, 2, 3)), torch.ones(8), rtol=1e-3, atol=0)
