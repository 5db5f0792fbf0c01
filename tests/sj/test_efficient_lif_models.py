"""EfficientLIF-Net's architectures for SpikingJelly: sizes, neurons, our methods on them, sharing, membranes."""
import copy
import pickle

import pytest
import torch
from helpers import assert_bit_equal, assert_fires, error
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch.nn.utils import prune
from training_steps import check, classify, native_run, one_thread  # noqa: F401  one_thread: a fixture
from zoo import assert_awake, wake

from shared_core.errors import MemextError
from shared_core.lif_memory import VGG16_NARROW, lif_memory, sharing_of
from sj_memext import model, restore, retrofit

SHARINGS = (None, "L", "C#2", "C#4", "C#8", "L+C#2")
EACH_SHARING = [pytest.param(s, marks=pytest.mark.slow) if s in ("C#4", "C#8") else s for s in SHARINGS]
STEPS, BATCH = 3, 2
# name: (function, options that make it small, shape of an input of the small one)
SMALL = {"vgg16": (model.vgg16, {"widths": (8, 8, 16, 8, 8)}, (STEPS, BATCH, 3, 16, 16)),
         "resnet19": (model.resnet19, {"widths": (8, 8, 16, 8)}, (STEPS, BATCH, 3, 8, 8)),
         "har_net": (model.har_net, {"width": 8}, (STEPS, BATCH, 6, 16))}


def small(name, **options):
    make, widths, shape = SMALL[name]
    torch.manual_seed(3)
    return make(**widths, **options), torch.randn(shape)


def settled(net, x):
    """In eval mode, with running statistics that are those of x: an untrained net is silent with any others."""
    for m in net.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.momentum = None  # the mean over all batches so far
    with torch.no_grad():
        net(x) if nodes(net)[0].step_mode == "m" else [net(step) for step in x]
    functional.reset_net(net)
    return net.eval()


def nodes(net):
    return [m for m in net.modules() if isinstance(m, neuron.BaseNode)]


def membrane_bytes(net):
    """Of the states that the neurons hold, each counted once."""
    states = {n.v.untyped_storage().data_ptr(): n.v for n in nodes(net)}
    assert all(v.dtype == torch.float32 for v in states.values())
    return sum(v.numel() * v.element_size() for v in states.values())


# ---- what is built ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "options", "parameters"), [
    # Counted in the authors' code (10 classes): VGG16 without and with sharing, ResNet19 with and without.
    (model.vgg16, {}, 15_795_594), (model.vgg16, {"widths": VGG16_NARROW}, 14_910_346),
    (model.resnet19, {}, 26_108_042), (model.resnet19, {"widths": (128, 128, 256, 512)}, 12_585_866),
    # Section V-D: Conv1D(6, 128), 4 x Conv1D(128, 128), Conv1D(128, 6), kernel 3; batch norm behind the first five.
    (model.har_net, {}, 3 * (6 * 128 + 4 * 128 * 128 + 128 * 6) + 6 + 5 * 2 * 128),
])
def test_parameters(make, options, parameters):
    with torch.device("meta"):
        net = make(**options)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name", SMALL)
def test_step_modes_and_output(name):
    """One sequence layer by layer, and the same step by step, in eval mode: batch norm is then the same model."""
    net, x = small(name, num_classes=7)
    stepped, _ = small(name, num_classes=7, step_mode="s")
    assert all(m.step_mode == "m" for m in net.modules() if hasattr(m, "step_mode"))
    assert all(m.step_mode == "s" for m in stepped.modules() if hasattr(m, "step_mode"))
    stepped.load_state_dict(settled(net, x).state_dict())
    with torch.no_grad():
        wanted = net(x)
        got = torch.stack([stepped.eval()(step) for step in x])
    assert wanted.shape == (STEPS, BATCH, 7) and wanted.std() > 0
    assert error(got, wanted) < 1e-5  # convolutions of another batch size round otherwise


@pytest.mark.parametrize("name", SMALL)
def test_default_neuron_is_the_papers(name):
    net, _ = small(name)
    for node in nodes(net):
        assert type(node) is neuron.LIFNode and node.decay_input is False and node.v_reset is None
        assert 1 - 1 / node.tau == pytest.approx(0.25) and node.v_threshold == 1.0 and node.detach_reset
        assert isinstance(node.surrogate_function, surrogate.ATan)
    scaled, _ = small(name, decay_input=True, v_reset=0.0)  # any on its own; these: the authors' code
    assert all(n.decay_input and n.v_reset == 0.0 and n.tau == pytest.approx(4 / 3) for n in nodes(scaled))


@pytest.mark.parametrize("name", SMALL)
def test_neuron_class_and_options_as_in_the_frameworks_models(name):
    function = surrogate.Sigmoid()
    net, x = small(name, spiking_neuron=neuron.ParametricLIFNode, init_tau=3.0, surrogate_function=function)
    assert all(type(n) is neuron.ParametricLIFNode and n.v_reset == 0.0 for n in nodes(net))
    assert len({id(n.surrogate_function) for n in nodes(net)} | {id(function)}) == len(nodes(net)) + 1
    net(x).sum().backward()
    assert all(n.w.grad is not None for n in nodes(net))


@pytest.mark.parametrize("name", SMALL)
def test_without_batch_norm_convolutions_have_a_bias(name):
    net, x = small(name, batch_norm=False)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Conv2d)]
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in net.modules())
    assert all(m.bias is not None and not m.bias.any() for m in convs)
    groups = net.sharing_groups()
    assert all(isinstance(net.get_submodule(n), neuron.LIFNode) for names in groups for n in names)
    assert net(x).shape[:2] == (STEPS, BATCH)


def test_groups_of_neurons_of_one_size():
    groups = {name: small(name)[0].sharing_groups() for name in SMALL}
    assert [len(names) for names in groups["vgg16"]] == [2, 3, 3, 3]  # the first two convolutions keep their own
    assert [len(names) for names in groups["resnet19"]] == [3, 3, 3, 3, 2, 2]
    assert [len(names) for names in groups["har_net"]] == [5]
    for name, found in groups.items():
        net = small(name)[0]
        assert all(isinstance(net.get_submodule(n), neuron.LIFNode) for names in found for n in names)
    assert [len(names) for names in small("resnet19")[0].sharing_groups(per_stage=1)] == [6, 6, 4]


@pytest.mark.parametrize("name", SMALL)
def test_copies_and_checkpoints(name):
    net, x = small(name, sharing="L+C#2")
    other, _ = small(name)
    assert list(net.state_dict()) == list(other.state_dict())  # a checkpoint of one loads into the other
    with torch.no_grad():
        wanted = net.eval()(x)
        for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            functional.reset_net(made)
            assert_bit_equal(made(x), wanted)


# ---- our methods on them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["neuron", "balanced", "memory"])
@pytest.mark.parametrize("name", SMALL)
def test_retrofit_and_recompute(name, method):
    """Outputs, states and gradients of three training steps are those of the framework's own neurons."""
    net, x = small(name)
    wake(net, x)
    assert_awake(net, x)
    check(net, method, native_run(net, x, loss=classify), loss=classify)


# ---- sharing ----------------------------------------------------------------------------------------------------


def shared_by_hand(net, x_seq, groups):
    """har_net in eval mode by Eq. 12-17, in plain Torch: [L] with `groups` channel groups, the paper's neuron."""
    lam, spike = 0.25, surrogate.ATan()
    convs = [m for m in net.features if isinstance(m, layer.Conv1d)]
    norms = [m for m in net.features if isinstance(m, layer.BatchNorm1d)]
    u = torch.zeros((), dtype=x_seq.dtype)  # U - O of the group before, of the layer before, of the step before
    out = []
    for x in x_seq:
        o = x
        for conv, norm in zip(convs, norms):
            weighted = torch.nn.functional.conv1d(o, conv.weight, conv.bias, padding=1)
            weighted = torch.nn.functional.batch_norm(weighted, norm.running_mean, norm.running_var, norm.weight,
                                                      norm.bias, eps=norm.eps)
            fired = []
            for part in weighted.chunk(groups, 1):
                u = lam * u + part
                fired.append(spike(u - 1.0))
                u = u - fired[-1].detach()
            o = torch.cat(fired, 1)
        scores = torch.nn.functional.conv1d(o, net.head.weight, net.head.bias, padding=1)
        out.append(scores.mean(-1))
    return torch.stack(out)


@pytest.mark.parametrize(("sharing", "groups"), [("L", 1), ("L+C#2", 2), ("L+C#4", 4)])
@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_har_net_is_the_papers_equations(sharing, groups, step_mode):
    net, x = small("har_net", sharing=sharing, step_mode=step_mode)
    net = settled(net, x).double()
    x = x.double().requires_grad_()
    spikes = []
    hooks = [n.register_forward_hook(lambda m, args, out: spikes.append(out.flatten())) for n in nodes(net)]
    got = net(x) if step_mode == "m" else torch.stack([net(step) for step in x])
    for hook in hooks:
        hook.remove()
    assert_fires(torch.cat(spikes))
    leaf = x.detach().clone().requires_grad_()
    wanted = shared_by_hand(net, leaf, groups)
    weight = torch.randn_like(wanted)
    grads = {}
    for key, out, inputs in (("got", got, x), ("wanted", wanted, leaf)):
        net.zero_grad()
        (out * weight).sum().backward()
        grads[key] = [inputs.grad, *(p.grad.clone() for p in net.parameters())]
    assert error(got, wanted) < 1e-12  # float64: the same sums
    for a, b in zip(grads["got"], grads["wanted"], strict=True):
        assert error(a, b) < 1e-10


@pytest.mark.parametrize("sharing", ["L", "C#2", "L+C#2"])
@pytest.mark.parametrize("name", SMALL)
def test_sharing_trains_and_is_undone(name, sharing):
    net, x = small(name, sharing=sharing)
    net(x).mean(0).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    functional.reset_net(net)
    assert all(type(n) is neuron.LIFNode for n in nodes(restore(net)))


@pytest.mark.parametrize("sharing", ["C#2", "L+C#2"])
def test_with_group_convolutions(sharing):
    """Table III: as many groups of convolution as of channels that share."""
    net, x = small("resnet19", sharing=sharing, conv_groups=2)
    grouped = [m.groups for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert grouped == [1] + [2] * 16
    plain = sum(p.numel() for p in small("resnet19")[0].parameters())
    assert sum(p.numel() for p in net.parameters()) < 0.6 * plain
    net(x).mean(0).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("sharing", ["L", "C#2", "L+C#2"])
def test_with_weight_pruning(sharing):
    """Magnitude pruning to the paper's 94.94 %: pruned weights stay zero through a training step, kept ones move."""
    net, x = small("resnet19", sharing=sharing)
    counted = lif_memory(net, x)
    convs = [(m, "weight") for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    prune.global_unstructured(convs, pruning_method=prune.L1Unstructured, amount=0.9494)
    left = [m.weight_mask.bool() for m, _ in convs]
    assert sum(mask.sum() for mask in left) == pytest.approx(0.0506 * sum(m.numel() for m in left), abs=1)
    before = [m.weight_orig.detach().clone() for m, _ in convs]
    net(x).mean(0).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    functional.reset_net(net)
    net(x)
    for (m, _), mask in zip(convs, left):
        assert not m.weight[~mask].any()
    assert any((m.weight_orig != old)[mask].any() for (m, _), old, mask in zip(convs, before, left))
    assert membrane_bytes(net) == BATCH * counted.forward_bytes  # pruning takes no membrane away


# ---- membranes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", EACH_SHARING)
@pytest.mark.parametrize(("name", "shape"), [("vgg16", (5, 1, 3, 32, 32)), ("resnet19", (5, 2, 3, 32, 32)),
                                             ("har_net", (5, 2, 6, 16))])
def test_membranes_of_the_built_net_are_the_analytic_ones(name, shape, sharing):
    """At the paper's widths and 32x32; the sample is only a shape here, and no tensor of its size is made."""
    with torch.device("meta"):
        net = getattr(model, name)(sharing=sharing)
    counted, wanted = lif_memory(net, shape), lif_memory(name, shape[-1], sharing=sharing)
    assert (counted.forward_bytes, counted.backward_bytes) == (wanted.forward_bytes, wanted.backward_bytes)
    sizes = [sorted((m.shape, len(m.layers), m.channels) for m in found.membranes) for found in (counted, wanted)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("step_mode", ["m", pytest.param("s", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sharing", EACH_SHARING)
@pytest.mark.parametrize("name", SMALL)
def test_measured_membranes_are_the_counted_ones(name, sharing, step_mode):
    """The states that are there after a forward pass: tensors of the neurons, each counted once."""
    net, x = small(name, sharing=sharing, step_mode=step_mode)
    before = copy.deepcopy(net.state_dict())
    counted = lif_memory(net, x if step_mode == "m" else x[0])
    assert all(not isinstance(n.v, torch.Tensor) for n in nodes(net))  # a copy was looked at
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    with torch.no_grad():
        net(x if step_mode == "m" else x[0])
    assert membrane_bytes(net) == BATCH * counted.forward_bytes
    assert len({n.v.untyped_storage().data_ptr() for n in nodes(net)}) == len(counted.membranes)
    assert counted.time_steps == (STEPS if step_mode == "m" else 5)
    shared = sharing_of(sharing).layers or sharing_of(sharing).channels > 1
    assert counted.backward_bytes == counted.forward_bytes * (1 if shared else counted.time_steps)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_the_baseline_keeps_what_is_counted(name, fused):
    """Backward figure of the baseline: what the neurons save for the backward pass, seen by saved-tensor hooks. The
    framework's own keep a potential for each step, ours their input; with a detached reset neither keeps more."""
    net, x = small(name)
    net = retrofit(net, "neuron") if fused else net
    kept = {}

    def pack(t):
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    for node in nodes(net):
        context = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        node.register_forward_pre_hook(lambda m, args, context=context: context.__enter__())
        node.register_forward_hook(lambda m, args, out, context=context: context.__exit__(None, None, None))
    net(x)
    assert sum(t.untyped_storage().nbytes() for t in kept.values()) == BATCH * lif_memory(net, x).backward_bytes


def test_counting_a_net_that_has_run():
    net, x = small("resnet19", sharing="L")
    wanted = lif_memory(net, x)
    net(x).sum().backward()
    assert lif_memory(net, x) == wanted and all(isinstance(n.v, torch.Tensor) for n in nodes(net))


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "options", "message"), [
    (model.vgg16, {"sharing": "C2"}, "allowed: None, 'baseline', 'L'"),
    (model.resnet19, {"step_mode": "x"}, "step_mode='x'"),
    (model.har_net, {"num_classes": 0}, "num_classes=0"),
    (model.vgg16, {"in_channels": 1.0}, "in_channels=1.0"),
    (model.vgg16, {"widths": (8, 8)}, "5 widths"),
    (model.resnet19, {"widths": (8, 8, 8, 9), "conv_groups": 2}, "multiple of conv_groups"),
    (model.har_net, {"kernel_size": 4}, "odd kernel_size"),
    (model.har_net, {"width": 9, "conv_groups": 2}, "multiple of conv_groups"),
    (model.har_net, {"spiking_neuron": neuron.ParametricLIFNode, "sharing": "L"}, "learns"),
])
def test_refused(make, options, message):
    with pytest.raises(MemextError, match=message):
        make(**options)


@pytest.mark.parametrize(("sample", "message"), [
    (None, "the sample is NoneType"), (3, "the sample is int"), (torch.zeros(3), "at least two dimensions"),
    ((2, 0, 6, 16), "the input's shape is 0"), ((2, 2, 5, 16), "the network raised RuntimeError on a sample of shape")])
def test_samples_refused(sample, message):
    net, _ = small("har_net")
    with pytest.raises(MemextError, match=message):
        lif_memory(net, sample)
    with pytest.raises(MemextError, match="of a built network there is no sharing"):
        lif_memory(net, (2, 2, 6, 16), sharing="L")


def test_channels_that_groups_do_not_divide():
    with pytest.raises(MemextError, match="3"):
        net, x = small("har_net", sharing="C#3")
        net(x)
