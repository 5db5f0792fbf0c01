"""Networks with no class of SpikingJelly: neurons are loops in somebody's forward, and no method reaches into them.

What can be done is to run whole modules again, and to keep spikes as bits in the plain layers between them.
"""
import copy
import pickle

import pytest
import torch
from torch import nn
from zoo_check import METHODS, assert_awake, assert_same, native, retrofitted, run
from zoo_families import FAMILIES

import sj_memext
from shared_core.checkpoint import checkpoint_modules, is_checkpointed, restore_modules
from shared_core.errors import MemextError

MS, INTEGER, TET = "MS-ResNet, mem_update", "integer neurons, mem_update", "TET VGG, LIFSpike"
BLOCKS = {MS: ["layers.*"], INTEGER: ["blocks.*"], TET: ["features.*"]}
# Shares of native's bytes (kept for backward, peak), and a tenth more, of whole blocks run again.
AT_MOST = {MS: (0.24, 0.54), INTEGER: (0.32, 0.66), TET: (0.28, 0.70)}


def again(name):
    return run(FAMILIES[name], lambda net: checkpoint_modules(net, BLOCKS[name]), follow=native(name))


@pytest.mark.parametrize("name", AT_MOST)
def test_it_fires(name):
    assert_awake(name)


@pytest.mark.parametrize("name", AT_MOST)
def test_whole_modules_run_again_give_the_same_steps_in_less_memory(name):
    theirs, ours = native(name), again(name)
    print(f"{name}: saved {ours.saved / theirs.saved:.3f}, peak {ours.peak / theirs.peak:.3f}")
    assert_same(ours, theirs)
    assert ours.saved <= AT_MOST[name][0] * theirs.saved and ours.peak <= AT_MOST[name][1] * theirs.peak


@pytest.mark.parametrize("name", AT_MOST)
def test_norms_count_a_batch_once(name):
    """torch.utils.checkpoint alone would count it twice."""
    theirs, ours = native(name).statistics, again(name).statistics
    assert any(key.endswith("num_batches_tracked") for key in theirs) and ours.keys() == theirs.keys()
    for key, buffer in theirs.items():
        assert torch.equal(ours[key], buffer), key


@pytest.mark.parametrize("name", AT_MOST)
def test_retrofit_says_that_there_is_no_neuron(name):
    net, _ = FAMILIES[name].make()
    kinds = [type(m) for m in net.modules()]
    with pytest.raises(MemextError, match=r"no neuron of the framework, only: .*(mem_update|LIFSpike)"):
        sj_memext.retrofit(net, "neuron")
    assert [type(m) for m in net.modules()] == kinds


@pytest.mark.parametrize("method", [m for m in METHODS if m != "neuron"])
@pytest.mark.parametrize("name", AT_MOST)
def test_the_plain_layers_between_its_neurons_can_be_changed(name, method):
    """MS-ResNet's are none: Snn_Conv2d calls Torch's function itself, and is left as it is."""
    theirs, ours = native(name), retrofitted(name, method)
    assert_same(ours, theirs)
    assert ours.saved <= (1.0 if name == MS else 0.85) * theirs.saved
    if name == MS:
        assert "Snn_Conv2d left: Snn_Conv2d.forward computes something of its own" in str(sj_memext.report(ours.net))


# ---- checkpoint_modules ----

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6))

    def forward(self, x, scale=1.0):
        return self.layers(x) * scale


def small(again=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), Block(), Block())
    return checkpoint_modules(net, ["[12]"]) if again else net


def step(net):
    torch.manual_seed(1)
    x = torch.randn(5, 4)
    loss = net(x).square().sum()
    net.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in net.parameters()), *(b.clone() for b in net.buffers())]


def test_gradients_masks_and_statistics_are_those_without():
    for got, wanted in zip(step(small()), step(small(False)), strict=True):
        assert torch.equal(got, wanted)


def test_objects_and_keys_stay_and_it_can_be_undone():
    net = small(False)
    modules, kinds, keys = list(net.modules()), [type(m) for m in net.modules()], list(net.state_dict())
    checkpoint_modules(checkpoint_modules(net, ["1", "2"]), ["1"])  # twice is once
    assert all(a is b for a, b in zip(net.modules(), modules)) and list(net.state_dict()) == keys
    assert [is_checkpointed(m) for m in net] == [False, True, True] and isinstance(net[1], Block)
    assert [type(m) for m in restore_modules(net).modules()] == kinds


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=["deepcopy", "pickle"])
def test_copies_run_again_too(copied):
    net = copied(small())
    assert [is_checkpointed(m) for m in net] == [False, True, True]
    for got, wanted in zip(step(net), step(small(False)), strict=True):
        assert torch.equal(got, wanted)


def test_only_the_outermost_of_nested_modules_runs_again():
    net = checkpoint_modules(small(False), ["*"])
    assert [name for name, m in net.named_modules() if is_checkpointed(m)] == ["0", "1", "2"]


def test_without_gradients_it_runs_once():
    net, calls = small(), []
    net[1].layers.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(torch.randn(5, 4))
    assert len(calls) == 1


class Counter(nn.Module):
    """Carries something from call to call: in a buffer, or as an attribute."""

    def __init__(self, buffer):
        super().__init__()
        if buffer:
            self.register_buffer("carried", torch.zeros(1))
        else:
            self.carried = None

    def forward(self, x):
        if "carried" in self._buffers:
            self.carried += 1
        else:
            self.carried = x if self.carried is None else self.carried + x
        return x * self.carried.sum()


@pytest.mark.parametrize("buffer", [True, False])
def test_a_state_is_refused_in_the_first_forward(buffer):
    net = checkpoint_modules(nn.Sequential(nn.Linear(4, 4), Counter(buffer)), ["1"])
    with pytest.raises(MemextError, match=r"\(Counter\) changes its 'carried'"):
        net(torch.randn(3, 4))


def _with_own_forward():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].forward = lambda x: x
    return net


@pytest.mark.parametrize("net, modules, match", [
    (small(False), "1", "a list of names or patterns"),
    (small(False), ["7"], "'7' fits no module; the outermost are: 0, 1, 2"),
    (nn.Sequential(nn.ModuleList([Block()])), ["0"], r"ModuleList, which has no forward .*what it holds: '0\.\*'"),
    (_with_own_forward(), ["0"], "was replaced on this object"),
], ids=["a string", "no such name", "a list of modules", "own forward"])
def test_bad_requests_change_nothing(net, modules, match):
    kinds = [type(m) for m in net.modules()]
    with pytest.raises(MemextError, match=match):
        checkpoint_modules(net, modules)
    assert [type(m) for m in net.modules()] == kinds


def test_neurons_of_a_framework_are_refused():
    from spikingjelly.activation_based import neuron

    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), neuron.LIFNode()))
    with pytest.raises(MemextError, match=r"'0\.1' is a spikingjelly.*LIFNode.*retrofit\(net, 'recompute'\)"):
        checkpoint_modules(net, ["0"])
