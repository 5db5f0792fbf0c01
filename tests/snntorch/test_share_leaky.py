"""share() in snnTorch nets, against Leaky written out in plain Torch with one membrane for several layers."""
from __future__ import annotations

import copy
import pickle

import pytest
import snntorch as snn
import torch
from sharing_nets import SINGLE, assert_fires, assert_gradients, weighted
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.nn.utils import prune

import snntorch_memext
from shared_core.errors import MemextError
from shared_core.temporal import unroll
from snntorch_memext import share
from snntorch_memext.neurons import FusedLeaky
from snntorch_memext.sharing import JoinedLeaky

BETA, THETA = 0.8, 0.6


def leaky(reset: str = "subtract", beta: float = BETA, **options) -> snn.Leaky:
    return snn.Leaky(beta=beta, threshold=THETA, reset_mechanism=reset, init_hidden=True,
                     spike_grad=surrogate.atan(alpha=2.0), **options)


def chain(depth: int = 3, width: int = 8, reset: str = "subtract") -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(depth):
        parts += [nn.Conv1d(width if i else 3, width, 3, padding=1), leaky(reset)]
        parts[-2].weight.data *= 1.6
        parts[-2].bias.data += 0.15
    return nn.Sequential(*parts)


def names(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, snn.Leaky)]


def inputs(steps: int = 6) -> Tensor:
    return torch.randn(steps, 2, 3, 7, generator=torch.Generator().manual_seed(1))


def loop(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([out[0] if isinstance(out := net(x_t), tuple) else out for x_t in x])


def at_rest(net: nn.Module) -> nn.Module:
    for m in net.modules():
        if isinstance(m, snn.Leaky):
            m.reset_mem()
    return net


def written_out(net: nn.Sequential, x: Tensor, groups: int = 1, reset: str = "subtract") -> Tensor:
    """Eq. 4-6 and 12-17 with snnTorch's neuron, whose membrane is reset when it is next used, without a gradient:
    mem = beta mem + x - R theta (or beta (1 - R) mem + x); R = H(mem before - theta)."""
    fire, mem, rows = surrogate.atan(alpha=2.0), None, []
    beta = torch.tensor(BETA)
    for h in x:
        for m in net:
            if isinstance(m, snn.Leaky):
                spikes = []
                for part in h.chunk(groups, 1):
                    mem = torch.zeros_like(part) if mem is None else mem
                    r = (mem > THETA).to(mem.dtype).detach()
                    mem = beta * ((1 - r) * mem) + part if reset == "zero" else beta * mem + part - r * THETA
                    spikes.append(fire(mem - THETA))
                h = torch.cat(spikes, 1)
            else:
                h = m(h)
        rows.append(h)
    return torch.stack(rows)


@pytest.mark.parametrize("way", ["loop", "unroll"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_layers_and_channels_share_one_membrane(groups, reset, way):
    net, plain = chain(reset=reset), chain(reset=reset)
    keys = list(net.state_dict())
    share(net, [names(net)], groups)
    assert list(net.state_dict()) == keys
    x = inputs()
    out = loop(net, x) if way == "loop" else unroll(net, x)
    wanted = written_out(plain, x, groups, reset)
    assert_fires(wanted)
    assert torch.equal(out, wanted)
    assert net[1].mem is net[5].mem and net[1].mem.shape == (2, 8 // groups, 7)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)


class Widen(nn.Module):
    """snnTorch's spikes are float32 in a float64 net, too."""

    def forward(self, x):
        return x.double()


def test_float64():
    def build():
        return nn.Sequential(*(part for m in chain() for part in ([Widen(), m] if isinstance(m, nn.Conv1d) else [m])
                               )).double()

    net, plain = build(), build()
    share(net, [names(net)], 2)
    x = inputs().double()
    out, wanted = loop(net, x), written_out(plain, x, 2)
    assert torch.equal(out.double(), wanted.double())
    weighted(out.double()).backward()
    weighted(wanted.double()).backward()
    assert_gradients(net, plain, SINGLE)  # not more exact: gradients pass through the float32 spikes


def test_fifty_steps_unrolled_equal_the_plain_loop():
    net, plain = chain(4), chain(4)
    for m in (net, plain):
        share(m, [names(m)])
    x = inputs(50)
    out, wanted = unroll(net, x), loop(plain, x)
    assert_fires(wanted, 0.02)
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)


def test_auto_joins_layers_of_equal_size():
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 8), leaky(), nn.Linear(8, 8), leaky(beta=0.7),
                        nn.Linear(8, 3), leaky(output=True))
    by_hand = copy.deepcopy(net)
    x = torch.randn(5, 4, 6) + 0.3
    share(net, "auto", sample=x[0])
    share(by_hand, [["1", "3"]])
    assert torch.equal(loop(net, x), loop(by_hand, x))
    said = str(snntorch_memext.report(net))
    assert "1, 3: one membrane" in said and "5: Leaky left: no neuron before or after it" in said
    late = share(copy.deepcopy(at_rest(snntorch_memext.restore(net))), "auto")
    assert torch.equal(loop(at_rest(late), x), loop(at_rest(by_hand), x))


def test_resets_copies_and_restore():
    net, native = chain(), chain()
    x = inputs()
    wanted = loop(native, x)
    share(net, [names(net)], 2)
    out = loop(net, x).detach()
    utils.reset(net)
    assert not net[1].mem.any() and net[3].mem is net[1].mem
    assert torch.equal(loop(net, x), out)
    at_rest(net)
    for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert made[3].mem is made[1].mem is not net[1].mem
        assert torch.equal(loop(made, x), out)
    snntorch_memext.restore(net)
    assert [type(m) for m in net] == [type(m) for m in native]
    assert not any(name in vars(m) for m in net for name in ("_leader", "_together", "groups") if name in vars(m)
                   and isinstance(m, snn.Leaky))
    assert torch.equal(loop(at_rest(net), x), wanted)


def test_weight_pruning_and_group_convolutions():
    def build():
        net = chain()
        net[2] = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        for i in (0, 2, 4):
            prune.l1_unstructured(net[i], "weight", 0.5)
        return net

    net, plain = build(), build()
    share(net, [names(net)], 2)
    x = inputs()
    out, wanted = unroll(net, x), written_out(plain, x, 2)
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)


class Explicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=BETA)
        self.fc2, self.lif2 = nn.Linear(8, 8), snn.Leaky(beta=BETA)

    def forward(self, x, mem):
        spk, mem = self.lif1(self.fc1(x), mem)
        return self.lif2(self.fc2(spk), mem)


def test_states_handed_around_share_channels_only():
    net = Explicit()
    with pytest.raises(MemextError, match=r"'lif1' .Leaky. cannot share .* init_hidden=False"):
        share(net, [["lif1", "lif2"]])
    share(net, channels=2)
    mem = net.lif1.reset_mem()
    spk, mem = net(torch.randn(3, 6), mem)
    assert spk.shape == (3, 8) and mem.shape == (3, 4)


@pytest.mark.parametrize(("make", "layers", "message"), [
    (lambda: nn.Sequential(leaky(), leaky(beta=0.5)), [["0", "1"]], "'0' and '1' differ in beta .0.8.* and 0.5"),
    (lambda: nn.Sequential(leaky(), leaky("zero")), [["0", "1"]], "differ in reset_mechanism .subtract and zero"),
    (lambda: nn.Sequential(leaky(), leaky(learn_beta=True)), [["0", "1"]], "'1' .Leaky. cannot .* learns beta"),
    (lambda: nn.Sequential(leaky(), snn.Synaptic(0.5, BETA, init_hidden=True)), [["0", "1"]],
     "'1' .Synaptic. cannot .* Leaky can share a membrane, Synaptic cannot"),
    (lambda: nn.Sequential(leaky(), leaky()), [["0", "2"]], "'2', and the net has no module of that name"),
])
def test_refused_with_names_and_reason(make, layers, message):
    net = make()
    with pytest.raises(MemextError, match=message):
        share(net, layers)
    assert not any(isinstance(m, FusedLeaky) for m in net)


def test_refused_as_it_runs():
    net = share(nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 4), leaky()), [["1", "3"]])
    with pytest.raises(MemextError, match=r"'3' shares with '1' has size .8,.*need .4,"):
        net(torch.ones(2, 6))
    net = share(chain(), [["1", "3"]])
    assert isinstance(net[1], JoinedLeaky)
    with pytest.raises(MemextError, match=r"'1' shares its membrane .* sequence of 3 steps by itself"):
        net[1].multi_step(torch.randn(3, 2, 8, 7))
