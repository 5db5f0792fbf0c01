"""Which neuron holds on to an earlier step's graph: found before the next forward, named after the error."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_memext
import snntorch_memext
from shared_core.program import _not_reset
from shared_core.temporal._hosts import imported


def spiking(ours):
    net = nn.Sequential(layer.Linear(3, 4), neuron.LIFNode(), nn.Sequential(layer.Linear(4, 4),
                                                                          neuron.ParametricLIFNode()))
    return sj_memext.retrofit(net) if ours else net


def leaky(ours):
    net = nn.Sequential(nn.Linear(3, 4), snn.Leaky(beta=0.9, init_hidden=True), nn.Sequential(
        nn.Linear(4, 4), snn.RLeaky(beta=0.9, linear_features=4, init_hidden=True)))
    return snntorch_memext.retrofit(net) if ours else net


def reset(net):
    functional.reset_net(net)
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, value.detach())


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize("make", [spiking, leaky], ids=["spikingjelly", "snntorch"])
def test_states_of_a_finished_step_are_found(make, ours):
    net, hosts = make(ours), imported()
    assert _not_reset.carried(net, hosts) == {}
    for _ in range(2):
        out = net(torch.rand(5, 3) * 3)
        assert _not_reset.carried(net, hosts) == {}  # a graph that is alive: the loop over time goes on
    out.sum().backward()
    found = _not_reset.carried(net, hosts)
    assert list(found) == ["1", "2.1"]
    model = SimpleNamespace(net=net, carried=found)
    with pytest.raises(RuntimeError) as caught:
        net(torch.rand(5, 3)).sum().backward()
    said = _not_reset.explanation(caught.value, [model], hosts)
    assert said.startswith("memext run: '1' (") and "and so do 1 more (2.1)" in said
    assert ("functional.reset_net(net)" if make is spiking else "utils.reset(net)") in said
    reset(net)
    assert _not_reset.carried(net, hosts) == {}


@pytest.mark.parametrize("make", [spiking, leaky], ids=["spikingjelly", "snntorch"])
def test_only_what_was_not_reset_is_named(make):
    net, hosts = make(True), imported()
    net(torch.rand(5, 3) * 3).sum().backward()
    reset(net[1])
    assert list(_not_reset.carried(net, hosts)) == ["2.1"]
    detached = net[2][1]
    if make is spiking:
        functional.detach_net(detached)
    else:
        for name, value in detached.named_buffers(recurse=False):
            setattr(detached, name, value.detach())
    assert _not_reset.carried(net, hosts) == {}


def test_a_kept_graph_is_not_a_mistake():
    net, hosts = spiking(True), imported()
    net(torch.rand(5, 3)).sum().backward(retain_graph=True)
    assert _not_reset.carried(net, hosts) == {}


def test_other_errors_are_left_alone_and_a_graph_of_the_programs_own_is_said():
    net, hosts = spiking(True), imported()
    model = SimpleNamespace(net=net, carried={})
    assert _not_reset.explanation(ValueError("backward through the graph a second time"), [model], hosts) is None
    assert _not_reset.explanation(RuntimeError("shapes"), [model], hosts) is None
    loss = net(torch.rand(5, 3)).sum()
    loss.backward()
    reset(net)
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    assert "the program's own" in _not_reset.explanation(caught.value, [model], hosts)


