"""The reversible networks: the authors' sizes, the same gradients with and without reversing, and they learn."""
import copy
import pickle

import pytest
import torch
from helpers import assert_bit_equal
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn.functional import cross_entropy

import sj_memext
from shared_core.errors import MemextError
from shared_core.memory import measure
from sj_memext.model import rev_spikformer, rev_spiking_resnet21, rev_spiking_resnet37

SMALL = {"resnet21": lambda **o: rev_spiking_resnet21(planes=(4, 6, 8, 10), **o),
         "resnet37": lambda **o: rev_spiking_resnet37(planes=(4, 6, 8, 10), T=3, in_channels=2, **o),
         "spikformer": lambda **o: rev_spikformer(width=16, heads=2, depth=3, **o)}


def built(name, **options):
    """From one seed, and with norms that make 10 to 40 % of the neurons fire."""
    torch.manual_seed(0)
    net = SMALL[name](**options)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.constant_(m.bias, 0.2)
            if name == "spikformer":
                nn.init.constant_(m.weight, 1.7)
    return net


def images(name, count=4, size=16):
    channels = 2 if name == "resnet37" else 3
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(4))


def run(net, x):
    functional.reset_net(net)
    net.zero_grad()
    scores = net(x).mean(0)
    cross_entropy(scores, torch.arange(len(scores)) % scores.shape[1]).backward()
    return scores.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def firing_rate(net, x):
    rates, net = [], copy.deepcopy(net)
    for m in net.modules():
        if isinstance(m, neuron.BaseNode):
            m.register_forward_hook(lambda m, a, out: rates.append(out.mean().item()))
    with torch.no_grad():
        net(x)
    return sum(rates) / len(rates)


def test_the_authors_numbers_of_parameters():
    """Zhang and Zhang 2024: 11.05 M and 23.59 M (with the 100 classes that they trained with), 5.76 M and 9.32 M."""
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    with torch.device("meta"):
        assert count(rev_spiking_resnet21(100)) == 11_048_420 and count(rev_spiking_resnet21()) == 10_967_690
        assert count(rev_spiking_resnet37(100)) == 23_590_884 and count(rev_spiking_resnet37()) == 23_510_154
        assert count(rev_spikformer()) == 5_766_586 and count(rev_spikformer(depth=4)) == 9_323_962


@pytest.mark.parametrize("method", [None, "neuron", "compress", "recompute"])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_without_reversing(name, method):
    net, plain, x = built(name), built(name, reversible=False), images(name)
    rate = firing_rate(plain, x)
    print(f"{name}: firing rate {rate:.3f}")
    assert 0.1 < rate < 0.4, rate
    if method:
        sj_memext.retrofit(net, method)
    scores, found = run(net, x)
    wanted_scores, wanted = run(plain, x)
    assert_bit_equal(scores, wanted_scores)
    if method in (None, "neuron"):
        exact = all(torch.equal(found[key], wanted[key]) for key in wanted)
        assert exact or method == "neuron"
    # The fused gradient's contract, over all parameters (a bias before a norm has none but rounding).
    off = torch.cat([(found[key] - wanted[key]).flatten() for key in wanted]).norm()
    assert off <= 1e-5 * torch.cat([g.flatten() for g in wanted.values()]).norm()
    buffers = dict(plain.named_buffers())
    assert all(torch.equal(b, buffers[key]) for key, b in net.named_buffers())
    for m in net.modules():
        if isinstance(m, sj_memext.layer.ReversibleSequence):
            half = m.blocks[0].g
            width = next(c for c in half.modules() if isinstance(c, layer.Conv2d)).in_channels
            assert m.check_invertible(torch.randn(3, 2, 2 * width, 4, 4))


@pytest.mark.parametrize("name", SMALL)
def test_images_and_sequences(name):
    """An image shown T times is a sequence of T equal frames; other frames are other scores."""
    net, x = built(name).eval(), images(name)
    with torch.no_grad():
        still = net(x)
        assert still.shape == (net.steps, 4, 10) and (still[0] != still[1]).any()
        functional.reset_net(net)
        assert_bit_equal(net(x.expand(net.steps, *x.shape)), still)
        functional.reset_net(net)
        assert net(torch.stack((x, x.flip(0)))).shape == (2, 4, 10)
    with pytest.raises(MemextError, match=r"\[T, N, C, H, W\] or an image"):
        net(x[0])


@pytest.mark.parametrize("name", SMALL)
def test_they_learn(name):
    net, x = built(name), images(name)
    sj_memext.retrofit(net, "neuron")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        functional.reset_net(net)
        optimizer.zero_grad()
        loss = cross_entropy(net(x).mean(0), torch.arange(4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_memory_of_a_stage_does_not_grow_with_its_blocks():
    kept = {}
    for depth in (1, 6):
        for reversible in (True, False):
            torch.manual_seed(0)
            net, x = rev_spikformer(width=16, heads=2, depth=depth, reversible=reversible), images("spikformer")
            run(net, x)
            kept[depth, reversible] = measure(lambda net=net, x=x: run(net, x), timeline=False).saved_bytes
    assert kept[6, True] - kept[1, True] < 64 * 2 * 5 + 64, "a number for every addition"
    assert kept[6, False] > 2 * kept[1, False]


@pytest.mark.parametrize("name", SMALL)
def test_whether_they_are_invertible(name):
    net, x, why = built(name), images(name), []
    net(x)  # states that are not at rest
    before = {n: b.clone() for n, b in net.named_buffers()}
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    states = [torch.as_tensor(m.v).clone() for m in nodes]
    assert net.check_invertible(x, why) and why == []
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    assert all(map(torch.equal, states, [torch.as_tensor(m.v) for m in nodes])) and any(s.dim() for s in states)
    rounded = built(name, grid=None)
    assert not rounded.check_invertible(x, why) and "without a grid" in why[0]
    assert why[0].partition(":")[0] in dict(rounded.named_modules()), "names the sequence"


def test_copies_pickles_and_options():
    net = built("resnet21", spiking_neuron=neuron.LIFNode, tau=3.0, surrogate_function=surrogate.Sigmoid())
    x = images("resnet21")
    other = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert other.neuron.tau == 3.0 and other.stages[0].step_mode == "m"
    assert_bit_equal(run(other, x)[0], run(net, x)[0])
    assert built("spikformer", v_threshold=0.8).blocks.blocks[0].f.neuron.v_threshold == 0.8
    assert built("spikformer", v_threshold=0.8).blocks.blocks[0].f.attended.v_threshold == 0.5  # the paper's own


@pytest.mark.parametrize("make, words", [
    (lambda: rev_spiking_resnet21(0), "num_classes is 0"),
    (lambda: rev_spiking_resnet21(T=True), "T is True"),
    (lambda: rev_spiking_resnet37(planes=(4, 8)), "planes has 2 entries"),
    (lambda: rev_spiking_resnet21(grid=0.3), "power of two"),
    (lambda: rev_spikformer(width=20, heads=3), "multiple of the heads"),
    (lambda: rev_spikformer(depth=0), "depth is 0"),
])
def test_bad_options(make, words):
    with pytest.raises(MemextError, match=words):
        make()
