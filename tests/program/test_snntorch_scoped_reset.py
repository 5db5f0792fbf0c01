"""snntorch.utils.reset under `memext run`: neurons of ours are reset by the net that holds them, nested ones and copies
too, and by no other; neurons that are not ours are reset as snnTorch does it. Neurons can be pickled.
"""
from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import weakref

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn

import snntorch_memext
from snntorch_memext import _reset, _run


@pytest.fixture(autouse=True)
def scoped():
    kept, utils._layer_check, utils._layer_reset = (utils._layer_check, utils._layer_reset), *_reset._theirs
    instances, snn.SpikingNeuron.instances = snn.SpikingNeuron.instances, []
    with snntorch_memext.substitute("neuron"):
        _run.begin(lambda text: None)
        yield
    utils._layer_check, utils._layer_reset = kept
    snn.SpikingNeuron.instances = instances
    del snn.SpikingNeuron.__getstate__


def chain(**options):
    return nn.Sequential(nn.Linear(3, 4), snn.Leaky(beta=0.9, init_hidden=True, **options),
                         nn.Linear(4, 2), snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True))


def stirred(*nets):
    """Every neuron holds a state with a graph."""
    for net in nets:
        net(torch.rand(5, 3) + 0.5)
    return [lif.mem for net in nets for lif in net.modules() if isinstance(lif, snn.SpikingNeuron)]


def at_rest(net):
    lifs = [lif for lif in net.modules() if isinstance(lif, snn.SpikingNeuron)]
    return all(lif.mem.grad_fn is None and not lif.mem.any() for lif in lifs)


def test_each_net_resets_its_own():
    one, other = chain(), chain()
    for net in (one, other):
        utils.reset(net)  # from here on it is known whose neurons they are
    before = stirred(one, other)
    assert all(mem.grad_fn is not None for mem in before)
    utils.reset(one)
    assert at_rest(one) and not at_rest(other)
    assert other[1].mem is before[2]  # untouched, not reset and refilled
    utils.reset(other)
    assert at_rest(other)


def test_nested_neurons():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([chain(), nn.Sequential(chain()[:2])])

        def forward(self, x):
            return self.body[0](x), self.body[1](x)

    net = Net()
    stirred(net)
    utils.reset(net)
    assert at_rest(net)
    assert utils.is_leaky and utils.is_synaptic and not utils.is_alpha  # what snntorch.backprop reads


def test_deepcopies():
    net = chain()
    average = copy.deepcopy(net)
    for part in (net, average):
        utils.reset(part)
    stirred(net, average)
    utils.reset(average)
    assert at_rest(average) and not at_rest(net)


def test_neurons_in_a_plain_list_are_reset_as_ever():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(beta=0.9, init_hidden=True)
            self.others = [snn.Leaky(beta=0.5, init_hidden=True)]  # no module list: not registered

        def forward(self, x):
            return self.others[0](self.lif(x))

    net = Net()
    net(torch.rand(5, 3) + 1)
    utils.reset(net)
    assert at_rest(net) and at_rest(net.others[0])


def test_nets_without_ours_are_reset_as_snntorch_does_it():
    ours = chain()
    utils.reset(ours)
    theirs, more = (nn.Sequential(nn.Linear(3, 4), snn.Lapicque(beta=0.9, init_hidden=True)) for _ in range(2))
    before = stirred(ours, theirs, more)
    utils.reset(theirs)
    assert at_rest(theirs) and at_rest(more)  # all of a class: snnTorch's own way
    assert ours[1].mem is before[0]


def test_reset_under_its_own_name_and_imported_early():
    net = chain()
    early = utils.reset  # the function itself is snnTorch's still
    stirred(net)
    early(net)
    assert at_rest(net)
    other = chain()
    stirred(net, other)
    _reset.reset(net)
    assert at_rest(net) and not at_rest(other)


def test_a_deleted_net_is_freed():
    net = chain()
    stirred(net)
    utils.reset(net)
    gone = weakref.ref(net[1])
    del net
    gc.collect()
    assert gone() is None


def _spikes(neuron, x, queue):
    queue.put([neuron(x)[0].detach().tolist() for _ in range(3)])


@pytest.mark.parametrize("make", [
    lambda: snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=7)),
    lambda: snn.Lapicque(beta=0.9), lambda: snn.Alpha(alpha=0.9, beta=0.8),
    lambda: snn.RLeaky(beta=0.9, all_to_all=False, spike_grad=surrogate.atan(alpha=3.0)),
], ids=["Leaky", "Lapicque", "Alpha", "RLeaky"])
def test_neurons_are_pickled_and_copied_with_their_surrogate(make):
    neuron = make()
    for other in (pickle.loads(pickle.dumps(neuron)), copy.deepcopy(neuron)):
        assert type(other) is type(neuron)
        grads = []
        for one in (neuron, other):
            x = torch.linspace(-1, 3, 9).requires_grad_()
            one.spike_grad(x).sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads) and grads[0].unique().numel() > 2


@pytest.mark.slow
def test_a_neuron_goes_to_a_spawned_process():
    context = multiprocessing.get_context("spawn")
    for neuron in (snn.Leaky(beta=0.9), snn.Lapicque(beta=0.9)):
        queue, x = context.Queue(), torch.tensor([0.4, 0.6, 1.2])
        process = context.Process(target=_spikes, args=(neuron, x, queue))
        process.start()
        found = queue.get(timeout=180)
        process.join()
        assert found == [copy.deepcopy(neuron)(x)[0].tolist(), *found[1:]] and sum(map(sum, found)) > 0


def test_a_retrofitted_net_is_reset_by_itself_and_a_restored_one_as_ever():
    utils._layer_check, utils._layer_reset = _reset._theirs  # without `memext run`
    one, other = (nn.Sequential(nn.Linear(3, 4), snn.Leaky(beta=0.9, init_hidden=True)) for _ in range(2))
    for net in (one, other):
        snntorch_memext.retrofit(net, "neuron")
    before = stirred(one, other)
    utils.reset(one)
    assert at_rest(one) and other[1].mem is before[1]
    for net in (one, other):
        snntorch_memext.restore(net)
    stirred(one, other)
    utils.reset(one)
    assert at_rest(one) and at_rest(other)
