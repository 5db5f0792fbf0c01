"""Early exit of snnTorch networks: states inside or handed around, every class of neuron that is stepped."""
import copy

import pytest
import snntorch as snn
import torch
from exit_reference import assert_same, between
from snntorch import utils
from torch import Tensor, nn

import snntorch_memext
from shared_core.errors import MemextError
from shared_core.hardware import early_exit
from snntorch_memext.neurons import FusedLeaky, FusedSynaptic, ReversibleLeaky, SharedLeaky

T, N = 6, 12


def inputs(*size, steps=T, samples=N) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    light = torch.rand(1, samples, *(1,) * len(size), generator=generator) + 0.3
    pattern, noise = (torch.randn(n, samples, *size, generator=generator) for n in (1, steps))
    return pattern * light + noise * 0.4


class Mine(snn.Leaky):
    """A user's neuron: leaks twice, and belongs to a module that no reset of the framework knows by name."""

    def __init__(self):
        super().__init__(beta=0.9, init_hidden=True)

    def forward(self, x):
        self.mem = self.mem * 0.5
        return super().forward(x)


def flat(*middle, classes=6):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(16, 20), *middle, nn.Linear(20, classes))
    for m in net.modules():
        if isinstance(m, nn.Linear):
            m.weight.data *= 3
    return net


class Stages(nn.Module):
    """Neurons of one size in a row, for share()."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.fcs = nn.ModuleList(nn.Linear(16 if i == 0 else 20, 20) for i in range(3))
        self.lifs = nn.ModuleList(snn.Leaky(beta=0.8, init_hidden=True) for _ in range(3))
        self.head = nn.Linear(20, 6)

    def forward(self, x):
        for fc, lif in zip(self.fcs, self.lifs):
            x = lif(fc(x) * 3)
        return self.head(x) * 3


def shared():
    return snntorch_memext.share(Stages(), [["lifs.0", "lifs.1", "lifs.2"]], channels=2)


def lstm():
    torch.manual_seed(1)
    return nn.Sequential(snn.SConv2dLSTM(2, 4, 3, max_pool=2, threshold=0.1, init_hidden=True), nn.Flatten(),
                         snn.SLSTM(64, 20, threshold=0.05, init_hidden=True), nn.Linear(20, 6))


CASES = {
    "leaky": (lambda: flat(snn.Leaky(beta=0.8, init_hidden=True)), (16,)),
    "leaky, zero, now": (lambda: flat(snn.Leaky(beta=torch.rand(20), init_hidden=True, reset_mechanism="zero",
                                                reset_delay=False)), (16,)),
    "inhibition": (lambda: flat(snn.Leaky(beta=0.8, init_hidden=True, inhibition=True)), (16,)),
    "synaptic": (lambda: flat(snn.Synaptic(alpha=0.6, beta=0.8, init_hidden=True)), (16,)),
    "alpha": (lambda: flat(snn.Alpha(alpha=0.8, beta=0.6, init_hidden=True, threshold=0.3)), (16,)),
    "lapicque": (lambda: flat(snn.Lapicque(beta=0.8, init_hidden=True)), (16,)),
    "rleaky": (lambda: flat(snn.RLeaky(beta=0.8, linear_features=20, init_hidden=True)), (16,)),
    "rsynaptic": (lambda: flat(snn.RSynaptic(alpha=0.5, beta=0.8, V=0.4, all_to_all=False, init_hidden=True)), (16,)),
    "lstms": (lstm, (2, 8, 8)),
    "a user's": (lambda: flat(Mine()), (16,)),
    "fused": (lambda: flat(FusedLeaky(beta=0.8, init_hidden=True), nn.Linear(20, 20),
                           FusedSynaptic(alpha=0.5, beta=0.7, init_hidden=True)), (16,)),
    "shared channels": (lambda: flat(SharedLeaky(groups=2, beta=0.8, init_hidden=True)), (16,)),
    "shared layers": (shared, (16,)),
    "reversible": (lambda: flat(ReversibleLeaky(beta=0.5, groups=2, init_hidden=True)), (16,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(flat(snn.Leaky(beta=0.8, init_hidden=True), classes=20)),
                                     snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(20, 6)), (16,)),
    "retrofitted": (lambda: snntorch_memext.retrofit(flat(snn.Leaky(beta=0.8, init_hidden=True)), "neuron"), (16,)),
    "retrofitted user's": (lambda: snntorch_memext.retrofit(flat(snn.Leaky(beta=0.7, init_hidden=True), Mine()),
                                                            "neuron"), (16,)),
}


def plain(net: nn.Module, x_seq: Tensor) -> Tensor:
    """Scores of every step, by the framework alone, of a copy at rest."""
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        return torch.stack([net(x) for x in x_seq])


def stopped_on(net, x_seq: Tensor, scores: Tensor, **options):
    scale = 3 / float(scores.abs().max())  # entropies from sure to unsure
    out = options.pop("output", lambda out: out)
    threshold = between(scores * scale)
    stopped = early_exit(net, threshold, output=lambda o: out(o) * scale, **options)
    assert_same(stopped(x_seq), scores * scale, threshold)
    return stopped


@pytest.mark.parametrize("build, size", CASES.values(), ids=CASES)
def test_hidden_states(build, size):
    net, x_seq = build(), inputs(*size)
    scores = plain(net, x_seq)
    net(x_seq[0]), net(x_seq[1])  # not at rest
    states = [(m, name, value.clone()) for m in net.modules() for name, value in m._buffers.items()]
    before = [(m, dict(vars(m)), m.training) for m in net.modules()]
    stopped = stopped_on(net, x_seq, scores)
    assert all(torch.equal(m._buffers[name], value) for m, name, value in states)
    assert all(vars(m).keys() == was.keys() and all(vars(m)[k] is was[k] for k in was) and m.training is mode
               for m, was, mode in before)
    stopped_on(net, x_seq, scores)
    assert stopped.threshold


class Explicit(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(16, 20), make(), nn.Linear(20, 6), make()
        self.fc1.weight.data *= 4
        self.fc2.weight.data *= 4

    def forward(self, x, state1, state2):
        spk, *state1 = self.lif1(self.fc1(x), *state1)
        spk, *state2 = self.lif2(self.fc2(spk), *state2)
        return {"spikes": spk, "mem": state2[-1]}, (tuple(state1), {"last": tuple(state2)}["last"])


MAKERS = {"leaky": lambda: snn.Leaky(beta=0.8), "synaptic": lambda: snn.Synaptic(alpha=0.5, beta=0.8),
          "rleaky": lambda: snn.RLeaky(beta=0.8, all_to_all=False, V=0.3), "fused": lambda: FusedLeaky(beta=0.8),
          "shared": lambda: SharedLeaky(groups=2, beta=0.8)}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("form", ["reset_mem", "function", "closure"])
def test_states_handed_around(form, make):
    net, x_seq = Explicit(make), inputs(16)

    def start(x=None):
        found = [lif.reset_mem() for lif in (net.lif1, net.lif2)]
        return tuple(state if isinstance(state, tuple) else (state,) for state in found)

    scores, states = [], start()
    with torch.no_grad():
        for x in x_seq:
            out, states = net(x, *states)
            scores.append(out["mem"])
    utils.reset(net)
    fresh = Explicit(make)
    step = {"closure": lambda x, *states: fresh(x, *states)}.get(form, fresh)
    state = tuple(s if isinstance(s, tuple) else (s,) for s in (fresh.lif1.reset_mem(), fresh.lif2.reset_mem()))
    stopped_on(step, x_seq, torch.stack(scores), state=(lambda x: state) if form == "function" else state,
               output=lambda out: out["mem"])


def test_delta_leaky():
    """Its states are no buffers."""
    net, x_seq = flat(snn.DeltaLeaky(beta=0.8, init_hidden=True, delta_threshold=0.5)), inputs(16)
    net = nn.Sequential(net[0], First(net[1]), net[2])
    stopped_on(net, x_seq, plain(net, x_seq))
    assert net[1].inner.mem is None


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def test_what_of_the_output():
    net, x_seq = flat(snn.Leaky(beta=0.8, init_hidden=True)), inputs(16)
    net.append(snn.Leaky(beta=0.8, init_hidden=True, output=True))
    with pytest.raises(MemextError, match=r"a step returned a tuple of 2.*output=lambda out: out\[0\]"):
        early_exit(net, 0.5)(x_seq)
    found = early_exit(net, 0.5, output=lambda out: out[0])(x_seq)
    assert found.outputs.shape == (N, 6) and set((found.outputs * found.steps[:, None]).unique().tolist()) <= set(
        range(T + 1))  # means of spikes


def test_a_network_that_loops_by_itself():
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(16, 6), snn.Leaky(beta=0.8)

        def forward(self, x):
            mem, found = self.lif.reset_mem(), []
            for _ in range(T):
                spk, mem = self.lif(self.fc(x), mem)
                found.append(spk)
            return torch.stack(found)

    with pytest.raises(MemextError, match="loops over time by itself cannot be stopped: pass a function"):
        early_exit(Loops(), 0.5, T=T)(inputs(16)[0])


def test_states_of_the_wrong_form():
    net, x_seq = Explicit(MAKERS["leaky"]), inputs(16)
    with pytest.raises(MemextError, match="must return two things"):
        early_exit(lambda x, *s: net.fc1(x), 0.5, state=(None,))(x_seq)

    with pytest.raises(MemextError, match="returned 2 states; 1 were given"):
        early_exit(lambda x, *s: (net.fc1(x), (s, s)), 0.5, state=(None,))(x_seq)

    def over_batch(x, mem):
        mem = net.fc1(x).sum(0) + mem
        return net.fc2(net.fc1(x)), mem

    with pytest.raises(MemextError, match=r"the state that the step returns cannot be gathered.*shape \(20,\)"):
        early_exit(over_batch, 0.5, state=0.0)(x_seq)
    with pytest.raises(MemextError, match=r"no torch\.nn\.Module was found"):
        early_exit(lambda x: x, 0.5)
