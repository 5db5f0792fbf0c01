"""share() in SpikingJelly nets, against Eq. 4-6 and 12-17 of EfficientLIF-Net written out in plain Torch."""
from __future__ import annotations

import copy
import gc

import pytest
import torch
from sharing_chains import TAU, before, chain, images, lif, neurons
from sharing_nets import (
    DOUBLE,
    SINGLE,
    assert_fires,
    assert_gradients,
    distance,
    reversed_membranes,
    stepped,
    weighted,
)
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_memext
from shared_core.errors import MemextError
from shared_core.lif_memory import lif_memory
from sj_memext import model, share
from sj_memext.sharing import JoinedIFNode, JoinedLIFNode

# ---- Eq. 4-6 and 12-17 -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_layers_and_channels_share_one_membrane(channels, hard, dtype):
    net, plain = (chain(hard=hard, detach=False).to(dtype) for _ in range(2))
    share(net, [neurons(net)], channels)
    x = images(dtype=dtype)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = net(mine)
    wanted, membranes = stepped(before(plain), theirs, [0] * 4, tau=TAU, groups=channels, hard=hard, detach=False)
    assert_fires(wanted)
    assert torch.equal(out, wanted)
    held = net[-1].v
    assert held.shape == (2, 8 // channels, 5, 6) and distance(held, membranes[0]) <= (1e-6 if dtype.itemsize == 4 else
                                                                                       1e-14)
    weighted(out).backward()
    weighted(wanted).backward()
    bound = SINGLE if dtype == torch.float32 else DOUBLE
    assert_gradients(net, plain, bound)
    assert distance(mine.grad, theirs.grad) <= bound


@pytest.mark.parametrize("prefer", ["memory", "balanced", "speed", "graph"])
def test_two_membranes_in_turn_with_norms_and_another_threshold(prefer):
    net, plain = (chain(norm=True, theta=0.8) for _ in range(2))
    names = neurons(net)
    share(net, [names[0::2], names[1::2]], 2, batch_norm="per_step", prefer=prefer)
    out, x = net(images()), images()
    wanted, _ = stepped(before(plain), x, [0, 1, 0, 1], tau=TAU, theta=0.8, groups=2)
    assert_fires(wanted)
    assert torch.equal(out, wanted)
    for (name, a), b in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b), f"{name}: statistics moved otherwise"
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)


@pytest.mark.parametrize(("steps", "depth", "lam"), [(5, 13, 0.25), pytest.param(50, 4, 0.9),
                                                     pytest.param(50, 13, 0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("prefer", ["memory", "balanced", "graph"])
def test_deep_groups_and_long_sequences_are_exact(prefer, steps, depth, lam):
    """Where dividing by lambda once a layer and step would leave nothing."""
    tau = 1 / (1 - lam)
    net, plain = (chain(depth, tau=tau) for _ in range(2))
    share(net, [neurons(net)], prefer=prefer)
    x = images(steps, 1, 4)
    out = net(x)
    wanted, _ = stepped(before(plain), x, [0] * depth, tau=tau)
    assert_fires(wanted, 0.02)
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)


def test_the_printed_reverse_computation_fails_where_ours_is_exact():
    """Eq. 21 divides rounding errors by lambda = 0.25 once a layer and step: 4^64 over 5 steps of 13 layers."""
    lam, depth = 0.25, 13
    tau = 1 / (1 - lam)
    layers, x = before(chain(depth, tau=tau)), images(5, 1, 4)
    u, true, spikes = torch.zeros(1, 8, 4, 5), [], []
    with torch.no_grad():
        for x_t in x:
            h = x_t
            for conv in layers:
                u = lam * u + conv(h)
                h = (u >= 1).float()
                true.append(u)
                spikes.append(h)
                u = u - h
        found = reversed_membranes(layers, x, spikes, true[-1], lam)
    errors = [(a - b).abs().max().item() for a, b in zip(found, true)]
    assert errors[-4] < 1e-4  # a few layers back it still works
    assert errors[0] > 1e3, errors[0]  # and at the first layer and step nothing is left of U


def test_input_scaled_by_tau_as_in_the_authors_code():
    net, plain = chain(), chain()
    for m in (*net, *plain):
        if isinstance(m, neuron.LIFNode):
            m.decay_input, m.v_threshold = True, 0.7
    share(net, [neurons(net)])
    nodes = [m for m in plain if isinstance(m, neuron.LIFNode)]
    x, rows = images(), []
    parts = before(plain)
    for x_t in x:
        for part in parts:
            x_t = nodes[0](part(x_t))  # one object, called several times a step
        rows.append(x_t)
    assert_fires(torch.stack(rows))
    assert torch.equal(net(x), torch.stack(rows))


# ---- residual blocks, parts of a net, step mode "s" ------------------------------------------------------------------

def small_resnet(**options) -> nn.Module:
    torch.manual_seed(0)
    net = model.resnet19(widths=(8, 8, 16, 16), batch_norm=False, **options)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data *= 1.2
            m.bias.data += 0.25
    return net


def test_auto_gives_each_stage_of_a_resnet_two_membranes():
    net, by_hand = small_resnet(), small_resnet()
    x = torch.randn(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    share(net, "auto", sample=x)
    share(by_hand, by_hand.sharing_groups())
    assert [type(m) for m in net.modules()] == [type(m) for m in by_hand.modules()]
    assert torch.equal(net(x), by_hand(x))
    assert len({id(m._memories) for m in net.modules() if isinstance(m, JoinedLIFNode)}) == 6
    one = share(small_resnet(), "auto", sample=tuple(x.shape), per_stage=1)
    assert len({id(m._memories) for m in one.modules() if isinstance(m, JoinedLIFNode)}) == 3
    assert type(one.stem[1]) is neuron.LIFNode  # no other layer of its size
    assert "stem.1: LIFNode left: no neuron before or after it" in str(sj_memext.report(one))


def test_a_stage_of_blocks_is_eq_4_to_6_with_residuals():
    net, plain = small_resnet(), small_resnet()
    share(net, [["stages.0.1.neuron1", "stages.0.2.neuron1"], ["stages.0.1.neuron2", "stages.0.2.neuron2"]])
    functional.set_step_mode(plain, "s")
    blocks = [plain.stages[0][1], plain.stages[0][2]]
    x = (torch.rand(4, 2, 8, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    # the region is blocks 1 and 2 of the stage; block 0 before them stays multi-step
    stage = net.stages[0]
    got = stage._modules["1"], stage.__dict__["forward"].runs
    assert got[1] == [(1, 3)]
    y, children = x, list(plain.stages[0])
    functional.set_step_mode(children[0], "m")
    y = children[0](y)
    before_ = [blocks[0].conv1, blocks[0].conv2, blocks[1].conv1, blocks[1].conv2]
    wanted, _ = stepped(before_, y, [0, 1, 0, 1], tau=4 / 3, residual=[None, -1, None, 1])
    out = stage(x)
    assert_fires(wanted)
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(stage, plain.stages[0], SINGLE)


def test_single_steps_by_the_users_loop_are_the_same_net():
    net, single = chain(hard=True), chain(hard=True, mode="s")
    for m in (net, single):
        share(m, [neurons(m)], 2)
    x = images()
    rows = torch.stack([single(x_t) for x_t in x])
    out = net(x)
    assert torch.equal(out, rows)
    weighted(out).backward()
    weighted(rows).backward()
    assert_gradients(net, single, SINGLE)


def test_a_sequence_in_two_pieces_is_one_sequence():
    net, whole = chain(), chain()
    for m in (net, whole):
        share(m, [neurons(m)])
    x = images(7)
    out = torch.cat([net(x[:3]), net(x[3:])])
    wanted = whole(x)
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, whole, SINGLE)


def test_integrate_and_fire_layers_share_too():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(4, 6), neuron.IFNode(), layer.Linear(6, 6), neuron.IFNode())
    one = copy.deepcopy(net)
    functional.set_step_mode(net, "m")
    share(net, "auto", sample=(5, 3, 4))
    assert type(net[1]) is JoinedIFNode
    x = torch.randn(5, 3, 4) + 0.5
    assert torch.equal(net(x), torch.stack([one[1](one[2](one[1](one[0](x_t)))) for x_t in x]))


# ---- memory ----------------------------------------------------------------------------------------------------------

def floats_alive() -> dict[int, tuple[tuple[int, ...], int]]:
    gc.collect()
    found = {}
    for o in gc.get_objects():
        if type(o) is torch.Tensor and o.layout is torch.strided and o.is_floating_point():
            found[o.untyped_storage().data_ptr()] = tuple(o.shape), o.untyped_storage().nbytes()
    return found


@pytest.mark.parametrize(("prefer", "states", "channels"), [("memory", 1, 1), ("memory", 1, 2), ("balanced", 2, 2),
                                                           ("speed", 5, 1)])
def test_membranes_kept_for_the_backward_pass_are_the_analytic_ones(channels, prefer, states):
    """5 steps. memory: the last membrane and no other (Table I: backward = forward); balanced: that before step 3 (the
    first chunk starts at rest), and the last; speed: those before steps 1 to 4, and the last. What autograd saves of a
    region is its input and its parameters."""
    net = chain(6, 8)
    share(net, [neurons(net)], channels, prefer=prefer)
    x = images(batch=3).requires_grad_()
    there = floats_alive()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = net(x)
    known = {p.data_ptr() for p in (*net.parameters(), x)}
    assert {t.data_ptr() for t in saved} == known
    others = [kept for at, kept in floats_alive().items() if at not in there and at != out.data_ptr()]
    kept = [nbytes for shape, nbytes in others if shape == (3, 8 // channels, 5, 6)]
    analytic = lif_memory([(8, 5, 6)] * 6, sharing=f"L+C#{channels}" if channels > 1 else "L", groups=[list(range(6))])
    assert sum(kept) == states * 3 * analytic.backward_bytes
    assert analytic.backward_bytes == analytic.forward_bytes
    assert len(others) == len(kept), f"other float tensors are kept: {others}"


@pytest.mark.parametrize("sharing", ["L", "C#2", "L+C#2"])
@pytest.mark.parametrize("build", [model.resnet19, model.vgg16], ids=["resnet19", "vgg16"])
def test_membranes_of_the_papers_nets_are_those_of_table_1(build, sharing):
    net = build(sharing=sharing).eval()
    with torch.no_grad():
        net(torch.zeros(1, 1, 3, 32, 32))
    held = {id(m._memories): m.v for m in net.modules() if isinstance(m, neuron.LIFNode)}
    nbytes = sum(v.numel() * v.element_size() for v in held.values())
    assert nbytes == lif_memory(build.__name__, 32, sharing=sharing).forward_bytes


# ---- what is refused -------------------------------------------------------------------------------------------------

class Summed(nn.Module):
    """Takes images, and makes and removes the time itself."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = layer.Conv2d(3, 4, 3, padding=1), lif()
        self.conv2, self.lif2 = layer.Conv2d(4, 4, 3, padding=1), lif()
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = x.unsqueeze(0).repeat(3, 1, 1, 1, 1)
        return self.lif2(self.conv2(self.lif1(self.conv1(x)))).mean(0)


def mixed() -> nn.Sequential:
    net = chain()
    net[3].tau = 2.0
    net[5] = neuron.ParametricLIFNode(step_mode="m")
    net.append(layer.MaxPool2d(2, step_mode="m"))
    net.append(layer.Conv2d(8, 8, 3, padding=1, step_mode="m"))
    net.append(lif())
    net[-1].step_mode = "m"
    return net


REFUSED = {
    "two sizes": (mixed, dict(layers=[["7", "10"]], sample=(2, 1, 3, 8, 8)),
                  "'7' has activations of size .8, 8, 8.*'10'"),
    "parameters": (mixed, dict(layers=[["1", "3"]]), "'1' and '3' differ in tau .1.5 and 2.0"),
    "own leak": (mixed, dict(layers=[["1", "5"]]), "'5' .ParametricLIFNode. cannot share .* it learns w of its own"),
    "no neuron": (mixed, dict(layers=[["1", "2"]]), "'2', which is no neuron but Conv2d"),
    "unknown": (mixed, dict(layers=[["1", "lif9"]]), "'lif9', and the net has no module of that name"),
    "twice": (mixed, dict(layers=[["1", "3"], ["3", "7"]]), "'3' is in layers.0. and layers.1."),
    "alone": (mixed, dict(layers=[["1"]]), "names '1' only"),
    "a word": (mixed, dict(layers="all"), "layers is 'all'; allowed: 'auto'"),
    "a number": (mixed, dict(layers=3), "layers is 3; allowed"),
    "nothing": (mixed, {}, "nothing is to be shared"),
    "odd channels": (chain, dict(channels=3, sample=(2, 1, 3, 8, 8)), "channels is 3, and '1' has activations of size"),
    "half a group": (chain, dict(channels=0), "groups is 0"),
    "norms in training": (lambda: chain(norm=True), dict(layers=[["2", "5"]]), "batch_norm='per_step'"),
    "norm option": (chain, dict(layers="auto", batch_norm="batch"), "batch_norm is 'batch'"),
    "prefer": (chain, dict(layers="auto", prefer="best"), "prefer is 'best'"),
    "stages": (chain, dict(layers=[["1", "3"]], per_stage=2), "per_stage is 2"),
    "sample": (chain, dict(layers="auto", sample="x"), "sample is 'x'"),
    "other sample": (chain, dict(layers="auto", sample=(2, 1, 5, 8, 8)), "does not run on a sample of shape"),
    "skip": (chain, dict(channels=2, skip=["conv"]), "skip names 'conv'"),
    "all skipped": (chain, dict(channels=2, skip=["*"]), "no neuron can be changed"),
    "no neurons": (lambda: nn.Linear(2, 2), dict(channels=2), "no neuron of the framework"),
    "no module": (lambda: 3, dict(channels=2), "sj_memext.share: net is int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_names_and_reason(case):
    make, options, message = REFUSED[case]
    net = make()
    attributes = [dict(vars(m)) for m in net.modules()] if isinstance(net, nn.Module) else []
    with pytest.raises(MemextError, match=message):
        share(net, **options)
    if attributes:
        assert [vars(m) for m in net.modules()] == attributes, "the refused net was changed"


def test_layers_for_whole_sequences_between_the_neurons():
    net = nn.Sequential(layer.Linear(4, 4), lif(), layer.TemporalWiseAttention(16, dimension=2), lif())
    functional.set_step_mode(net, "m")
    with pytest.raises(MemextError, match=r"works on whole sequences only"):
        share(net, [["1", "3"]])


def test_sizes_are_checked_as_it_runs_where_there_was_no_sample():
    net = mixed()
    share(net, [["7", "10"]])
    with pytest.raises(MemextError, match=r"'10' shares with '7' has size .8, 8, 8.*need .8, 4, 4"):
        net(torch.randn(2, 1, 3, 8, 8))


def test_norms_put_into_training_mode_afterwards():
    net = chain(norm=True).eval()
    share(net, [["2", "5"]])
    net(images())
    with pytest.raises(MemextError, match=r"batch norm inside"):
        net.train()(images())
    functional.set_step_mode(net, "s")
    net(images()[0])  # the user's own loop has the statistics of a step in any case


def test_a_forward_that_makes_the_time_itself():
    net = Summed()
    share(net, [["lif1", "lif2"]])
    with pytest.raises(MemextError, match=r"called on a sequence of 3 steps by itself"):
        net(torch.randn(4, 3, 6, 6))


def test_a_member_on_a_sequence_by_itself_and_twice_shared():
    net = chain()
    share(net, [["1", "3"]])
    with pytest.raises(MemextError, match=r"'1' shares its membrane .* sequence of 4 steps by itself"):
        net[1](torch.randn(4, 2, 8, 5, 5))
    with pytest.raises(MemextError, match=r"'3' .JoinedLIFNode. cannot share .* already"):
        share(net, [["3", "5"]])
    assert type(net[5]) is neuron.LIFNode
