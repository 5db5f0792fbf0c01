"""What `memext run` does inside a process, model by model: where the method is applied, what the comparison with native
moves (nothing), and what it says where it cannot compare.
"""
from __future__ import annotations

import copy
import pickle
import random
import threading

import numpy as np
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from shared_core._entering import entered
from shared_core.program import _probe, _summary
from shared_core.program._command import Options
from shared_core.program._session import Session

CALL = nn.Module.__call__


@pytest.fixture
def session():
    """Makes a session for both frameworks; what it patched is put back."""
    made = []
    name = nn.Module._get_name

    def begin(method="neuron", **options):
        found = Session(Options(method, **options))
        made.append(found)
        for framework in ("spikingjelly", "snntorch"):
            found.imported(framework)
        return found
    yield begin
    for one in made:
        one.close()
    nn.Module._get_name = name
    assert nn.Module.__call__ is CALL


def spiking():
    net = nn.Sequential(layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), neuron.LIFNode(), layer.Dropout(0.4),
                        layer.Flatten(), layer.Linear(4 * 16, 5), neuron.IFNode())
    functional.set_step_mode(net, "m")
    return net


def train(net, steps=3, reset=functional.reset_net):
    """Some steps with momentum; everything that moves: losses, parameters, buffers, random numbers."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    found = []
    for _ in range(steps):
        x, y = torch.rand(4, 6, 2, 6, 6) * 4, torch.randint(5, (6,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x).mean(0), y)
        loss.backward()
        optimizer.step()
        reset(net)
        found += [loss.detach(), torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
    return [*found, *(t.detach().clone() for t in net.state_dict().values())]


def net_of(make, seed=0):
    torch.manual_seed(seed)
    return make()


def measured(session):
    """Ends a session: (the comparison of its only model, what is said)."""
    text = session.end(False, [])
    (model,) = session.models
    return model.applied.measured, text


def test_the_comparison_moves_nothing(session):
    with_us = session()
    net = net_of(spiking)
    seen = []
    net[2].register_forward_hook(lambda module, args, out: seen.append(out.sum().item()))  # the program's monitor
    got = train(net)
    assert nn.Module.__call__ is CALL and len(seen) == 3
    found, text = measured(with_us)
    with_us.close()
    plain = net_of(spiking)
    # what it is compared with: our neurons, without a session (native's gradients round differently in the last bit)
    import sj_memext
    sj_memext.retrofit(plain, "neuron")
    wanted = train(plain)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    assert found.equal and found.apart < 1e-6 and "outputs equal native's" in text
    assert found.reports["ours"].saved_bytes < found.reports["native"].saved_bytes
    assert with_us.steps == 3


def test_nothing_is_compared_twice_and_nothing_is_kept(session):
    one = session()
    net = net_of(spiking)
    train(net, 3)
    (model,) = one.models
    assert model.recording is None and not net._forward_hooks and len(net._forward_pre_hooks) == 1


def test_copies_and_pickles_of_a_model_tell_nobody(session):
    one = session()
    net = net_of(spiking)
    train(net, 1)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        functional.reset_net(other)
        other(torch.rand(4, 6, 2, 6, 6))
        assert [type(m) for m in other.modules()] == [type(m) for m in net.modules()]
    assert len(one.models) == 1


def test_the_outermost_module_is_the_model_also_when_parts_are_called_first(session):
    one = session("recompute", probe=False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = spiking(), nn.Sequential(layer.Linear(5, 5), neuron.LIFNode())
            functional.set_step_mode(self, "m")

        def forward(self, x):
            return self.head(self.body(x))

    net = Net()
    encoder = nn.Identity()
    encoder(torch.rand(3))  # no neuron in it: not a model
    with torch.no_grad():
        net.body(torch.rand(4, 6, 2, 6, 6))
    functional.reset_net(net)
    train(net)
    assert [model.net for model in one.models] == [net]
    assert all(type(m).__name__.startswith(("Fused", "Chain")) for m in net.modules()
               if isinstance(m, neuron.BaseNode | nn.Conv2d | nn.Linear))


def test_models_built_later_and_in_other_threads(session):
    one = session(probe=False)
    first = net_of(spiking)
    train(first, 1)
    assert nn.Module.__call__ is CALL
    made = []
    thread = threading.Thread(target=lambda: made.append(spiking()))
    thread.start()
    thread.join()
    second = spiking()
    assert entered(second[2]) and not entered(made[0][2])  # in a thread nothing is substituted
    for net in (made[0], second):  # but the next models that are called are looked at
        train(net, 1)
        assert all(entered(m) for m in net.modules() if isinstance(m, neuron.BaseNode))
    assert len(one.models) == 3


def test_an_evaluation_before_training(session):
    one = session()
    net = net_of(spiking)
    net.eval()
    with torch.no_grad():
        net(torch.rand(4, 9, 2, 6, 6))
    functional.reset_net(net)
    net.train()
    train(net)
    found, _ = measured(one)
    assert found.equal and found.how.startswith("the first batch, forward and backward from the gradient")


class Explicit(nn.Module):
    """One step; the program's loop hands the state around."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5), snn.Leaky(beta=0.9)

    def forward(self, x, mem, *, scale=1.0):
        return self.lif(scale * self.fc(x), mem)


def explicit_step(net, detach=False):
    mem, total = net.lif.init_leaky(), 0.0
    for _ in range(7):
        spk, mem = net(torch.rand(4, 6) * 3, mem.detach() if detach else mem, scale=2.0)
        total = total + spk.sum() + mem.square().mean()
    total.backward()


def test_states_that_the_program_hands_around(session):
    one = session()
    net = net_of(Explicit)
    explicit_step(net)
    grads = [p.grad.clone() for p in net.parameters()]
    found, text = measured(one)
    assert found.equal and found.apart < 1e-6 and "(7 calls of the model)" in text and not found.notes
    for p, g in zip(net.parameters(), grads):
        assert torch.equal(p.grad, g)


def test_states_that_are_changed_on_the_way_are_constants_and_said(session):
    one = session()
    net = net_of(Explicit)
    mem = net.lif.init_leaky()
    for _ in range(3):
        spk, mem = net(torch.rand(4, 6) * 3, mem * 0.5)
    spk.sum().backward()
    found, text = measured(one)
    assert found.equal and "arguments that are computed from earlier outputs are constants in the comparison" in text


def test_a_method_for_sequences_on_neurons_that_are_stepped(session):
    one = session("recompute", probe=False)
    explicit_step(net_of(Explicit))
    text = one.end(False, [])
    assert "'recompute' is for whole sequences, and snntorch's neurons are called once a step: 'neuron' instead" in text


def test_inputs_changed_in_place_are_said(session):
    one = session()
    net = net_of(Explicit)
    x = torch.rand(4, 6)
    net(x, net.lif.init_leaky())[1].sum().backward()
    x.squeeze_().mul_(2)
    _, text = measured(one)
    assert "an input of the first step was changed in place after it" in text


def test_a_model_that_cannot_be_copied(session):
    one = session()
    net = net_of(spiking)
    net[2].lock = threading.Lock()
    losses = train(net)
    assert losses[0].isfinite() and all(entered(m) for m in (net[2], net[6]))
    _, text = measured(one)
    assert "no training step of it was compared with a native one" in text


def test_native_that_does_not_fit_is_left_out(session, monkeypatch):
    one = session()
    net = net_of(spiking)
    monkeypatch.setattr(_probe, "_memory", lambda: (100, 3))
    train(net)
    found, text = measured(one)
    assert set(found.reports) == {"ours"} and "native was not measured: it does not fit into this machine's" in text


def test_outputs_that_cannot_be_watched_are_summed_and_that_is_said(session):
    class Out:
        __slots__ = ("value",)

    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(layer.Linear(6, 5), neuron.LIFNode())

        def forward(self, x):
            out = Out()
            out.value = self.net(x)
            return out

    one = session()
    net = Hides()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        net(torch.rand(4, 6) * 3).value.sum().backward()
        optimizer.step()
        functional.reset_net(net)
    _, text = measured(one)
    assert "no comparison with a native step: MemextError: no output of this step has a gradient" in text


@pytest.mark.slow
def test_compiled_models_are_ours_and_not_measured(session):
    one = session()
    net = net_of(spiking)
    compiled = torch.compile(net, backend="eager")
    got = train(compiled, reset=lambda _: functional.reset_net(net))
    text = one.end(False, [])
    assert "inside torch.compile: no step of it is measured" in text and got[0].isfinite()
    assert all(entered(m) for m in (net[2], net[6]))


def test_a_fork_forgets(session):
    one = session(probe=False)
    train(net_of(spiking), 1)
    one.forget()
    assert one.models == [] and one.steps == 0


def test_the_report_is_short_for_large_models(session):
    one = session(probe=False)
    net = nn.Sequential(*(m for _ in range(30) for m in (layer.Linear(4, 4), neuron.LIFNode(), neuron.QIFNode())))
    net(torch.rand(2, 4)).sum().backward()
    text = _summary.text(one, ["a problem"])
    assert len(text.splitlines()) < 10 and "30 LIFNode -> FusedLIFNode" in text and "a problem" in text
    assert "left: 2, 5, 8, 11 and 26 more (QIFNode): there is no memory-efficient version" in text
