"""Plans of models that step through time in a Python loop, and of neurons that do not fill a byte, as measured."""
from __future__ import annotations

import copy

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from zoo import lif, plif

import sj_memext
import snntorch_memext
from shared_core import memory
from shared_core._plan_copy import framework_reset
from shared_core._plan_methods import NATIVE
from shared_core._plan_trace import mean_of_outputs
from shared_core.errors import MemextError
from shared_core.plan import plan

# The ledger notes what a real step runs: only a few numbers, such as counts of steps, are not the same.
CLOSE = 0.01


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Loop(nn.Module):
    """SpikingJelly's step mode "s". An input with a time of its own is stepped through, any other is shown T times."""

    def __init__(self, make, width: int = 16, steps: int = 5):
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), make(),
            nn.Conv2d(width, width, 3, padding=1), make(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    def forward(self, x):
        return torch.stack([self.net(step) for step in (x if x.dim() == 5 else [x] * self.steps)])


class HandedOn(nn.Module):
    """snnTorch's way: the states are the caller's."""

    def __init__(self, make, width: int = 16, steps: int = 5):
        super().__init__()
        self.steps, self.conv, self.first = steps, nn.Conv2d(3, width, 3, padding=1), make()
        self.again, self.second = nn.Conv2d(width, width, 3, padding=1), make()

    def forward(self, x):
        first, second, spikes = self._start(self.first), self._start(self.second), []
        for _ in range(self.steps):
            spike, *first = self.first(self.conv(x), *first)
            spike, *second = self.second(self.again(spike), *second)
            spikes.append(spike.mean((2, 3)))
        return torch.stack(spikes), second[-1]

    @staticmethod
    def _start(node) -> tuple:
        state = node.reset_mem()
        return state if isinstance(state, tuple) else (state,)


def measured(net: nn.Module, x: torch.Tensor, method: str, options: dict) -> int:
    net = copy.deepcopy(net)
    if method != NATIVE:
        (snntorch_memext if isinstance(net, HandedOn) else sj_memext).retrofit(net, method, **options)
    framework_reset(net)

    def step() -> None:
        out = net(x)  # held until the end, as the plan takes it
        mean_of_outputs(out).backward()

    step()  # a later step is what counts: libraries are loaded, states have their shapes
    framework_reset(net)
    net.zero_grad(set_to_none=True)
    return memory.measure(step, timeline=False).peak_bytes


def assert_as_measured(net: nn.Module, x: torch.Tensor, batch_dim: int) -> set[str]:
    found = plan(net, x, batch_dim=batch_dim)
    for m in found.methods:
        assert m.problem is None, m.problem
        real = measured(net, x, m.method, m.options)
        print(f"{m.name}: predicted {m.peak.step}, measured {real}")
        assert m.peak.step == pytest.approx(real, rel=CLOSE), m.name
    return {m.name for m in found.methods}


IMAGE, SEQUENCE, ODD = (4, 3, 12, 12), (5, 4, 3, 12, 12), (3, 3, 7, 5)
_SLOW = pytest.mark.slow


@pytest.mark.parametrize("make, shape, width", [
    pytest.param(lambda: lif(step_mode="s"), IMAGE, 16, id="LIF"),
    pytest.param(lambda: lif(step_mode="s"), ODD, 5, id="LIF-odd"),
    pytest.param(lambda: lif(step_mode="s"), SEQUENCE, 16, id="LIF-sequence", marks=_SLOW),
    pytest.param(lambda: lif(step_mode="s", v_reset=None, detach_reset=True), IMAGE, 16, id="LIF-soft", marks=_SLOW),
    pytest.param(lambda: plif(step_mode="s"), IMAGE, 16, id="PLIF"),
    pytest.param(neuron.IFNode, IMAGE, 16, id="IF", marks=_SLOW),
    pytest.param(neuron.KLIFNode, IMAGE, 16, id="KLIF", marks=_SLOW),
])
def test_a_loop_of_spikingjelly_as_measured(make, shape, width):
    """Our single steps keep the potential, neither input nor state; on tensors without memory, too."""
    names = assert_as_measured(Loop(make, width), torch.randn(shape), 1 if len(shape) == 5 else 0)
    assert {"native", "neuron", "compress", "recompute(balanced)"} <= names


@pytest.mark.parametrize("make", [
    pytest.param(lambda: snntorch.Leaky(beta=0.9), id="Leaky"),
    pytest.param(lambda: snntorch.Leaky(beta=0.9, learn_beta=True, reset_mechanism="zero"), id="Leaky-learns"),
    pytest.param(lambda: snntorch.Synaptic(alpha=0.8, beta=0.9), id="Synaptic"),
])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_loop_of_snntorch_as_measured(make, steps):
    """From the second training step on, reset_mem gives zeros of the last shape: that is the step that is planned."""
    assert assert_as_measured(HandedOn(make, steps=steps), torch.randn(IMAGE), 0) == {"native", "neuron"}


def test_the_users_own_snntorch_neurons_keep_their_states():
    net, x = HandedOn(lambda: snntorch.Leaky(beta=0.9, init_hidden=False)), torch.randn(IMAGE)
    net(x)
    states = [net.first.mem, net.second.mem]
    plan(net, x, batch_dim=0)
    assert net.first.mem is states[0] and net.second.mem is states[1] and states[0].shape == (4, 16, 12, 12)


@pytest.mark.parametrize("width, shape", [(16, (4, 4, 3, 12, 12)), (5, (3, 3, 3, 7, 5)), (1, (5, 1, 3, 5, 5))],
                         ids=["whole bytes", "5 x 7 x 5 x 3 neurons", "25 neurons"])
def test_neurons_that_do_not_fill_a_byte(width, shape):
    """Spikes are kept as bits, whole bytes per time step, or packed over the steps: in both, as many as were measured.

    The last neuron's output is the net's, so that a map which is kept too long shows.
    """
    net = nn.Sequential(layer.Conv2d(3, width, 3, padding=1), lif(), layer.Conv2d(width, width, 3, padding=1), lif())
    functional.set_step_mode(net, "m")
    assert_as_measured(net, torch.randn(shape), 1)


# ---- the wrong dimension ----------------------------------------------------------------------------------------

def test_time_is_not_taken_for_the_batch_in_a_loop():
    """The largest batch would else be looked for in loops over thousands of steps."""
    net = Loop(lambda: lif(step_mode="s"), steps=2)
    with pytest.raises(MemextError, match=r"dimension 0 looks like time: with 8072 samples there, a LIFNode is called "
                                          r"ever more often.* pass batch_dim=1 if the samples are in dimension 1"):
        plan(net, SEQUENCE[1:2] + SEQUENCE[1:], budget="1GiB", batch_dim=0, max_batch=True)
    assert plan(net, IMAGE, budget="1GiB", batch_dim=0, max_batch=True)["neuron"].largest_batch > 4


def test_time_is_not_taken_for_the_batch_of_a_sequence():
    net = nn.Sequential(layer.Conv2d(3, 4, 3), lif(), layer.Flatten(), layer.Linear(4 * 10 * 10, 3))
    functional.set_step_mode(net, "m")
    with pytest.raises(MemextError, match=r"dimension 0 looks like time: .* a LIFNode is run over so many time steps"):
        plan(net, SEQUENCE, budget="1GiB", batch_dim=0, max_batch=True)
    # Nothing fits, and the largest batch that would is not asked for: a note says why there is none in the advice.
    found = plan(net, SEQUENCE, budget=60_000, batch_dim=0)
    assert found.chosen is None and "dimension 0 looks like time" in found.notes[-1]
    assert "batch of" not in " ".join(found.advice)


def test_the_samples_are_in_the_other_dimension():
    found = plan(Loop(lambda: lif(step_mode="s"), steps=2), IMAGE, budget="1GiB", max_batch=True)
    assert found["native"].largest_batch is None
    assert "with 8072 samples in dimension 1 a step" in found["native"].problem
    assert "are the samples in dimension 0 (batch_dim=0)?" in found["native"].problem
    # the same for every method: said once
    assert found.table().count("8072 samples in dimension") == 1
