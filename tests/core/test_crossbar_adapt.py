"""Batch-norm adaptation: the statistics are those of the crossbars' output, and nothing else changes."""
import copy

import pytest
import torch
from torch import nn

from shared_core.errors import MemextError
from shared_core.hardware import Crossbar, adapt_batch_norm


class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(20, 8, bias=False), nn.BatchNorm1d(8, momentum=0.3), nn.Dropout(0.5),
                         nn.Threshold(0, 0), nn.Linear(8, 3))


def loader(batches=3, size=16):
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(size, 20, generator=generator) < 0.4).float() for _ in range(batches)]


def test_statistics_of_what_the_crossbars_give():
    """The average over batches of mean and (unbiased) variance; weights, affine parameters and modes as they were."""
    net = Crossbar(wire_ohm=50.0, variation=0.2).convert(Net().eval())
    net[2].train()
    kept = copy.deepcopy(net.state_dict())
    data = loader()
    assert adapt_batch_norm(net, data) is net
    seen = [net[0](x) for x in data]
    norm = net[1]
    assert torch.allclose(norm.running_mean, torch.stack([y.mean(0) for y in seen]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([y.var(0) for y in seen]).mean(0), rtol=1e-5)
    assert norm.num_batches_tracked == 3 and norm.momentum == 0.3
    assert [m.training for m in net] == [False, False, True, False, False] and not net.training
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, kept[key])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_it_brings_the_activations_back():
    """Wires take a good part of the current; after adaptation the norm gives mean 0 and variance 1 again."""
    data = loader(8, 32)
    net = adapt_batch_norm(Net().eval(), data)
    right = torch.cat([net[1](net[0](x)) for x in data])
    assert right.mean(0).abs().max() < 1e-5
    Crossbar(wire_ohm=200.0, encoding="twos-complement").convert(net)
    wrong = torch.cat([net[1](net[0](x)) for x in data])
    adapt_batch_norm(net, data)
    after = torch.cat([net[1](net[0](x)) for x in data])
    assert (wrong - right).abs().mean() > 3 * (after - right).abs().mean()
    assert after.mean(0).abs().max() < 1e-4 < 0.1 < wrong.mean(0).abs().max()


def test_momentum_number_of_batches_labels_and_run():
    net, data = Net(), loader()
    before = net[1].running_mean.clone() + 1
    net[1].running_mean.copy_(before)
    adapt_batch_norm(net, ((x, None) for x in data), momentum=0.25, batches=2)
    first, second = (net[0](x).detach().mean(0) for x in data[:2])
    assert torch.allclose(net[1].running_mean, (before * 0.75 + first * 0.25) * 0.75 + second * 0.25, atol=1e-6)
    assert net.training
    called = []
    adapt_batch_norm(net, data, run=lambda module, x: called.append((module is net, net(x).requires_grad)))
    assert called == [(True, False)] * 3


def test_dropout_is_off_meanwhile():
    net, data = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(20)).train(), loader(1)
    adapt_batch_norm(net, data)
    assert torch.allclose(net[1].running_mean, data[0].mean(0), atol=1e-6) and net[0].training


def test_neurons_start_and_end_at_rest():
    pytest.importorskip("sj_memext")
    from spikingjelly.activation_based import functional, layer, neuron
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(20, 8), layer.BatchNorm1d(8), neuron.LIFNode(tau=5.0, v_threshold=0.3),
                        layer.Linear(8, 8), layer.BatchNorm1d(8))
    functional.set_step_mode(net, "m")
    data = [x.expand(4, *x.shape) for x in loader()]
    Crossbar(wire_ohm=20.0).convert(net.eval())
    net(data[0])
    adapt_batch_norm(net, data)
    assert net[2].v == 0.0
    fresh = net[4].running_mean.clone()
    adapt_batch_norm(net, data)  # from rest again: the same, though the first norm's statistics were others before
    assert torch.equal(net[4].running_mean, fresh)


class Stumbles(Net):
    def forward(self, x):
        if x.shape[0] == 1:
            raise RuntimeError("a batch of one")
        return super().forward(x)


@pytest.mark.parametrize("data, error, words", [
    ([], MemextError, "the loader gave no batch"), ([*loader(1), torch.ones(1, 20)], RuntimeError, "a batch of one")])
def test_a_failure_leaves_it_as_it_was(data, error, words):
    net = Stumbles()
    kept = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=words):
        adapt_batch_norm(net, data)
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    assert all(m.training for m in net.modules()) and net[1].momentum == 0.3


@pytest.mark.parametrize("call, words", [
    (lambda: adapt_batch_norm(nn.Linear(3, 3), []), "this Linear has no batch norm with running statistics"),
    (lambda: adapt_batch_norm(nn.BatchNorm1d(3, track_running_stats=False), []), "has no batch norm with running"),
    (lambda: adapt_batch_norm(3, []), "net is int; a torch.nn.Module"),
    (lambda: adapt_batch_norm(Net(), [], momentum=2), r"momentum is 2; allowed: None, or a number in \(0, 1\]"),
    (lambda: adapt_batch_norm(Net(), [], batches=0), "batches is 0")])
def test_bad_input(call, words):
    with pytest.raises(MemextError, match=words):
        call()
