"""Nets as people write them: every way in which convolution, norm, neuron and plain Python may meet equals native."""
import copy
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from training_steps import METHOD_PARAMS, check, classify, convert, native_run, neurons, one_thread
from zoo import assert_awake, lif, plif, wake

__all__ = ["one_thread"]  # a fixture

CASES: dict[str, tuple[Callable, Callable, dict]] = {}
IMAGE = (4, 2, 3, 8, 8)


class Net(nn.Module):
    """Named parts, and a forward that is a plain function of (net, x)."""

    def __init__(self, run: Callable, **parts: nn.Module):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def case(*shape: int, x: Callable = torch.randn, **how):
    """Enters a function that builds a net, for an input x(shape); how: options of native_run and check."""
    def enter(build: Callable) -> Callable:
        CASES[build.__name__] = (build, lambda: x(shape or IMAGE), how)
        return build
    return enter


def events(shape: tuple) -> Tensor:
    """Binary input, as from an event camera."""
    return (torch.rand(shape) < 0.3).float()


def conv(i: int = 3, o: int = 6, k: int = 3, **options) -> layer.Conv2d:
    return layer.Conv2d(i, o, k, **{"padding": k // 2, "bias": False, "step_mode": "m", **options})


def norm(features: int = 6, **options) -> layer.BatchNorm2d:
    bn = layer.BatchNorm2d(features, step_mode="m", **options)
    if bn.affine:  # weights of either sign, none at its default
        nn.init.uniform_(bn.weight, -1.5, 1.5)
        nn.init.uniform_(bn.bias, -0.2, 0.4)
    return bn


def block(i: int = 3, o: int = 6, **options) -> nn.Sequential:
    return nn.Sequential(conv(i, o, **options), norm(o), lif())


def two(first: nn.Module, second: nn.Module | None = None, **parts) -> Net:
    """first -> neuron -> conv -> norm -> neuron: what comes before a neuron, and spikes into a convolution after it."""
    return Net(lambda net, x: net.b(net.first(x)), first=first, b=second or block(6, 5), **parts)


# ---- containers -------------------------------------------------------------------------------------------------

@case()
def layers():
    return nn.Sequential(block(), layer.MaxPool2d(2, step_mode="m"), block(6, 8), layer.AvgPool2d(2, step_mode="m"),
                         layer.Flatten(step_mode="m"), layer.Linear(32, 9, step_mode="m"), plif(),
                         layer.Linear(9, 4, step_mode="m"))


@case()
def seq_to_ann_container():
    pack = layer.SeqToANNContainer
    return nn.Sequential(pack(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)), lif(),
                         pack(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.MaxPool2d(2)), plif(),
                         pack(nn.Flatten(), nn.Linear(45, 4)))


@case()
def seq_to_ann_forward():
    def run(net, x):
        s = net.lif(functional.seq_to_ann_forward(x, [net.conv, net.bn]))
        return net.lif2(functional.seq_to_ann_forward(s, nn.Sequential(net.conv2, net.bn2)))
    return Net(run, conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(6), lif=lif(), conv2=nn.Conv2d(6, 5, 3),
               bn2=nn.BatchNorm2d(5), lif2=lif(v_reset=None))


@case()
def multi_step_forward_of_single_steps():
    parts = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), lif(step_mode="s"), nn.Conv2d(6, 5, 3), plif(step_mode="s")]
    return Net(lambda net, x: functional.multi_step_forward(x, net.parts), parts=nn.Sequential(*parts))


# ---- residuals, several consumers, things used twice --------------------------------------------------------------

@case()
def residual_before_the_neuron():
    def run(net, x):
        x = net.a(x)
        out = net.bn(net.conv(x))
        out += x
        return net.lif(out)
    return Net(run, a=block(), conv=conv(6), bn=norm(), lif=lif())


@case()
def residual_of_spikes():
    """x + F(x): sums of spikes, which are small integers, into the next convolution; then into another sum."""
    def run(net, x):
        x = net.a(x)
        x = x + net.b(x)
        x = x + net.c(x)
        return net.d(x)
    return Net(run, a=block(), b=block(6), c=block(6), d=block(6, 4))


@case()
def spikes_masked_and_inverted():
    def run(net, x):
        x = net.a(x)
        return net.c(x * (1.0 - net.b(x)) + 0.5 * x)
    return Net(run, a=block(), b=block(6), c=block(6, 4))


@case()
def same_block_twice():
    return Net(lambda net, x: net.b(net.b(net.a(x))), a=block(), b=block(6))


@case()
def several_neurons_on_one_input():
    def run(net, x):
        h = net.bn(net.conv(x))
        return net.b(net.lif(h) + 2 * net.plif(h)) + net.lif(h.flip(1)).mean(2, keepdim=True)
    return Net(run, conv=conv(), bn=norm(), lif=lif(), plif=plif(), b=block(6, 5))


@case()
def one_neuron_used_twice():
    """The second call starts from where the first one ended."""
    return Net(lambda net, x: net.lif(net.bn2(net.conv2(net.lif(net.bn(net.conv(x)))))), conv=conv(), bn=norm(),
               lif=lif(), conv2=conv(6), bn2=norm())


@case()
def shared_weights():
    a = conv(3, 3)
    b = conv(3, 3)
    b.weight = a.weight
    return nn.Sequential(a, norm(3), lif(), b, norm(3), lif(), a, lif())


@case()
def shared_norm():
    bn = norm(6)
    return nn.Sequential(conv(), bn, lif(), conv(6), bn, lif())


@case()
def weight_of_a_functional_call_too():
    def run(net, x):
        s = net.b(net.a(x))
        return s + functional.seq_to_ann_forward(net.a(x), lambda z: F.conv2d(z, net.b[0].weight, padding=1))
    return Net(run, a=block(), b=block(6))


@case()
def second_consumers_of_conv_and_norm():
    def run(net, x):
        y = net.conv(x)
        h = net.bn(y)
        return net.b(net.lif(h)) + y.mean() + (h * h).mean() + y.amax((2, 3, 4), keepdim=True)
    return Net(run, conv=conv(), bn=norm(), lif=lif(), b=block(6, 5))


@case()
def outputs_at_every_level():
    def run(net, x):
        y = net.conv(x)
        h = net.bn(y)
        s = net.lif(h)
        return torch.cat([t.flatten(2) for t in (y, h, s, net.b(s))], 2)
    return Net(run, conv=conv(), bn=norm(), lif=lif(), b=block(6, 5))


@case()
def neuron_after_neuron_and_norm_after_norm():
    return nn.Sequential(conv(), norm(), norm(), lif(), plif(), conv(6), conv(6), norm(), lif())


# ---- reshapes between them ----------------------------------------------------------------------------------------

@case()
def reshapes_between_conv_norm_and_neuron():
    def run(net, x):
        t, n = x.shape[:2]
        y = net.conv(x.flatten(0, 1))
        h = net.bn(y.flatten(2)).view(t, n, 6, 8, 8)
        s = net.lif(h.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
        y = net.fc(s.flatten(3).transpose(2, 3))
        h = net.bn2(y.flatten(0, 1).transpose(1, 2)).transpose(1, 2).reshape(t, n, 64, 5).contiguous()
        return net.lif2(h)
    return Net(run, conv=nn.Conv2d(3, 6, 3, padding=1), bn=nn.BatchNorm1d(6), lif=lif(), fc=nn.Linear(6, 5),
               bn2=nn.BatchNorm1d(5), lif2=lif())


@case()
def a_part_of_the_output():
    """Slices, chunks, flips and stacks between: not all of the output, or not in its order."""
    def run(net, x):
        h = net.bn(net.conv(x))
        a, b = net.lif(h[:, :, :4]), net.lif2(h.chunk(2, 2)[1])
        return net.b(torch.cat([a.flip(0)[:, :, :3], b], 2)) + net.c(a[:, :, 1:].roll(1, 1)[1:].repeat(4, 1, 1, 1, 1)
                                                                     [:4])
    return Net(run, conv=conv(), bn=norm(), lif=lif(), lif2=lif(), b=block(6, 5), c=block(3, 5))


@case()
def time_and_batch_exchanged():
    """Transposed between conv and neuron, with as many steps as samples: the shape tells nothing."""
    return Net(lambda net, x: net.b(net.lif(net.bn(net.conv(torch.cat([x, x * 0.5], 1))).transpose(0, 1))),
               conv=conv(), bn=norm(), lif=lif(), b=block(6, 5))


@case(2, 3, 8, 8)
def an_image_shown_at_every_step():
    """Convolution and norm once, their output repeated or expanded for the neurons."""
    def run(net, x):
        h = net.bn(net.conv(x.unsqueeze(0)))
        s = net.lif(h.expand(4, -1, -1, -1, -1)) + net.plif(h.repeat(4, 1, 1, 1, 1))
        return net.b(s) + net.c(x.expand(4, -1, -1, -1, -1))
    return Net(run, conv=conv(), bn=norm(), lif=lif(), plif=plif(), b=block(6, 5), c=block(3, 5))


@case()
def steps_stacked():
    def run(net, x):
        h = torch.stack([net.bn(net.conv(x_t)) for x_t in x])
        return net.b(torch.cat([net.lif(h)[:2], net.lif(h[2:])]))
    return Net(run, conv=nn.Conv2d(3, 6, 3, padding=1), bn=nn.BatchNorm2d(6), lif=lif(), b=block(6, 5))


@case(4, 2, 6, 6, 6)
def square_maps_transposed():
    return Net(lambda net, x: net.b(net.lif(net.bn(net.conv(x)).transpose(3, 4)).transpose(2, 3).contiguous()),
               conv=conv(6), bn=norm(), lif=lif(), b=block(6, 5))


# ---- dropout and pooling ------------------------------------------------------------------------------------------

@case()
def dropout():
    return nn.Sequential(conv(), norm(), layer.Dropout(0.3, step_mode="m"), lif(), layer.Dropout2d(0.2, step_mode="m"),
                         conv(6), nn.Dropout(0.4), lif(), layer.Flatten(step_mode="m"), nn.Dropout(0.5),
                         nn.Linear(384, 4))


@case()
def pooling():
    pool = layer.SeqToANNContainer
    return nn.Sequential(
        conv(), norm(), lif(), layer.MaxPool2d(3, 1, 1, step_mode="m"), conv(6), norm(),
        layer.MaxPool2d(2, step_mode="m"), lif(), pool(nn.AvgPool2d(3, 1, 1, count_include_pad=False)), conv(6), lif(),
        pool(nn.MaxPool2d(3, 1, 1, dilation=1, ceil_mode=True)), conv(6), norm(),
        layer.AdaptiveAvgPool2d(3, step_mode="m"), lif(), pool(nn.AdaptiveMaxPool2d(2)), conv(6, 4, 1), lif(),
        pool(nn.AvgPool2d(2, divisor_override=3)))


@case()
def pooling_of_sums_of_spikes():
    """Equal counts in one window: the gradient goes to the first, as natively."""
    def run(net, x):
        s = net.a(x)
        s = s + net.b(s) - net.c(s)
        return net.d(net.pool(s)) + net.e(net.wide(s))
    pool = layer.SeqToANNContainer
    return Net(run, a=block(), b=block(6), c=block(6), pool=layer.MaxPool2d(2, step_mode="m"), d=block(6, 4),
               wide=pool(nn.MaxPool2d(3, 2, 1, dilation=1)), e=block(6, 4))


@case(4, 2, 3, 11, 9)
def windows_of_many_shapes():
    pool = layer.SeqToANNContainer
    return nn.Sequential(block(), pool(nn.MaxPool2d((3, 2), (1, 1), (1, 0), dilation=(1, 2))), block(6),
                         pool(nn.MaxPool2d(2, 3, ceil_mode=True)), block(6), pool(nn.AvgPool2d((2, 1), (1, 2), (1, 0))),
                         block(6), pool(nn.AdaptiveAvgPool2d((2, None))), block(6))


@case()
def pooling_with_indices():
    def run(net, x):
        s, where = F.max_pool2d(net.a(x).flatten(0, 1), 2, return_indices=True)
        return net.b(F.max_unpool2d(s, where, 2).unflatten(0, x.shape[:2]))
    return Net(run, a=block(), b=block(6, 5))


# ---- what the layers can be ---------------------------------------------------------------------------------------

@case()
def kinds_of_convolution():
    return nn.Sequential(
        conv(), norm(), lif(), conv(6, groups=2, bias=True), norm(), lif(), conv(6, groups=6), norm(), lif(),
        conv(6, dilation=2, padding=2), norm(), lif(), conv(6, 6, stride=2), norm(), lif(),
        layer.ConvTranspose2d(6, 6, 3, stride=2, padding=1, output_padding=1, step_mode="m"), norm(), lif(),
        conv(6, padding="same"), norm(), lif(), conv(6, 6, 1, bias=True), lif())


@case()
def padding_modes():
    return nn.Sequential(conv(padding_mode="circular"), norm(), lif(), conv(6, padding_mode="reflect"), norm(), lif(),
                         conv(6, padding_mode="replicate", bias=True), lif())


@case(4, 2, 3, 20)
def one_dimension():
    return nn.Sequential(layer.Conv1d(3, 6, 3, step_mode="m"), layer.BatchNorm1d(6, step_mode="m"), lif(),
                         layer.MaxPool1d(2, step_mode="m"), layer.Conv1d(6, 5, 1, step_mode="m"), plif(),
                         layer.ConvTranspose1d(5, 4, 3, step_mode="m"), layer.BatchNorm1d(4, step_mode="m"), lif())


@case(3, 2, 2, 4, 6, 6)
def three_dimensions():
    return nn.Sequential(layer.Conv3d(2, 4, 3, padding=1, step_mode="m"), layer.BatchNorm3d(4, step_mode="m"), lif(),
                         layer.AvgPool3d(2, step_mode="m"), layer.Conv3d(4, 5, 2, step_mode="m"), lif())


@case(5, 3, 12)
def linear():
    return nn.Sequential(nn.Linear(12, 20), lif(), layer.Linear(20, 16, bias=False, step_mode="m"),
                         layer.BatchNorm1d(16, step_mode="m"), plif(), nn.Linear(16, 5, bias=False), lif(),
                         nn.Linear(5, 3))


@case()
def norms():
    return nn.Sequential(conv(), layer.GroupNorm(2, 6, step_mode="m"), lif(), conv(6), nn.LayerNorm([6, 8, 8]), lif(),
                         conv(6), layer.SeqToANNContainer(nn.InstanceNorm2d(6, affine=True)), lif(), conv(6, bias=True),
                         lif())


@case()
def batch_norms():
    return nn.Sequential(conv(bias=True), norm(affine=False), lif(), conv(6), norm(track_running_stats=False), lif(),
                         conv(6), norm(momentum=None), lif(), conv(6), norm(momentum=0.37, eps=0.01), lif())


@case()
def threshold_dependent_norm():
    """Derived from batch norm, with equations of their own."""
    return nn.Sequential(conv(), layer.ThresholdDependentBatchNorm2d(0.7, 1.0, 6), lif(), conv(6),
                         layer.TemporalEffectiveBatchNorm2d(4, 6), lif())


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


class Doubling(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class Shifting(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x + 0.5) - 0.25


class Halving(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


@case()
def layers_with_a_forward_of_their_own():
    pack = layer.SeqToANNContainer
    return nn.Sequential(pack(Standardised(3, 6, 3), Shifting(6)), lif(), pack(Doubling(6, 6, 3), nn.BatchNorm2d(6)),
                         lif(), layer.WSConv2d(6, 6, 3, step_mode="m"), norm(), lif(), layer.Flatten(step_mode="m"),
                         Halving(24, 4))


@case()
def parametrized_weights():
    parametrize = parametrizations.weight_norm
    return nn.Sequential(parametrize(conv()), norm(), lif(), parametrizations.spectral_norm(conv(6)), lif())


@case()
def neurons_of_many_kinds():
    def kind(cls, **options):
        return cls(**{"v_threshold": 0.6, "v_reset": -0.2, "step_mode": "m", **options})

    return nn.Sequential(
        conv(), norm(), kind(neuron.KLIFNode), conv(6), norm(), kind(neuron.EIFNode), conv(6), norm(),
        kind(neuron.IFNode, v_reset=None, surrogate_function=surrogate.LeakyKReLU()), conv(6), norm(),
        lif(surrogate_function=surrogate.S2NN()), conv(6), norm(), lif(detach_reset=True, decay_input=False),
        conv(6), norm(), lif(store_v_seq=True), conv(6), norm(), kind(neuron.QIFNode, v_c=0.3, v_rest=-0.2))


@case()
def a_readout_of_potentials():
    def run(net, x):
        net.lif(net.fc(net.a(x).flatten(2)))
        return net.lif.v_seq + net.lif.v
    return Net(run, a=block(), fc=nn.Linear(384, 5), lif=lif(store_v_seq=True))


@case()
def no_neuron_behind_and_none_before():
    return nn.Sequential(conv(), norm(), nn.ReLU(), conv(6), norm(), lif(), conv(6), norm(), nn.ReLU(inplace=True),
                         nn.AvgPool3d(2))


# ---- what is trained, and how -------------------------------------------------------------------------------------

def frozen(net: nn.Module, *patterns: str) -> nn.Module:
    for name, p in net.named_parameters():
        if any(pattern in name for pattern in patterns):
            p.requires_grad_(False)
    return net


@case()
def frozen_convolution():
    return frozen(two(block(bias=True)), "first.0", "b.0.weight")


@case()
def frozen_bias_or_weight_only():
    return frozen(two(block(bias=True), block(6, 5, bias=True)), "first.0.bias", "first.1.weight", "b.0.weight",
                  "b.1.bias")


@case()
def frozen_norm():
    return frozen(two(block(bias=True)), "first.1", "b.1")


@case()
def all_frozen():
    return frozen(two(block()), "")


@case(grad_x=False)
def frozen_front():
    return frozen(two(block()), "first")


@case(grad_x=False)
def frozen_back():
    return frozen(two(block()), "b.")


@case()
def no_grad_part():
    def run(net, x):
        with torch.no_grad():
            x = net.a(x)
        return net.b(x) + net.b(x.detach())
    return Net(run, a=block(), b=block(6, 5))


@case()
def detached_between():
    return Net(lambda net, x: net.c(net.b(net.a(x).detach()) + net.a(x)), a=block(), b=block(6), c=block(6, 4))


@case()
def inference_mode_part():
    def run(net, x):
        with torch.inference_mode():
            s = net.a(x.detach())
        return net.b(s.clone())
    return Net(run, a=block(), b=block(6, 5))


@case()
def eval_mode_norms():
    net = two(block(bias=True))
    net(torch.randn(IMAGE))
    functional.reset_net(net)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    return net


@case()
def eval_mode():
    net = nn.Sequential(two(block()), layer.Dropout(step_mode="m"))
    net(torch.randn(IMAGE))
    functional.reset_net(net)
    return net.eval()


# ---- inputs -------------------------------------------------------------------------------------------------------

@case(x=events)
def binary_input():
    return two(block())


@case(x=lambda shape: (torch.rand(shape) * 6).floor(), grad_x=False)
def counts_as_input():
    return two(block())


@case(x=lambda shape: (torch.rand(shape) * 400 - 150).floor() / 16, grad_x=False)
def fractions_as_input():
    return two(block())


def one_that_is_not(value: float) -> Callable:
    """Binary, but for the last value."""
    def make(shape: tuple) -> Tensor:
        x = events(shape)
        x.view(-1)[-1] = value
        return x
    return make


ALMOST_SPIKES = {
    "half": one_that_is_not(0.5), "two": one_that_is_not(2.0), "minus one": one_that_is_not(-1.0),
    "huge": one_that_is_not(3e9), "tiny": one_that_is_not(1e-30), "200": one_that_is_not(200.0),
    "40000": one_that_is_not(40000.0), "ternary": lambda shape: torch.randint(-1, 2, shape).float(),
    "scaled": lambda shape: 0.3 * events(shape), "nothing": torch.zeros, "ones": torch.ones,
    "minus zero": lambda shape: -0.0 * torch.rand(shape) + events(shape),
    "bytes": lambda shape: torch.randint(0, 256, shape).float()}


@pytest.mark.parametrize("method", METHOD_PARAMS)
@pytest.mark.parametrize("kind", ALMOST_SPIKES)
def test_what_looks_like_spikes(kind, method):
    """Into a convolution, a pool and a linear layer: kept exactly, in whatever form."""
    net = nn.Sequential(layer.MaxPool2d(3, 1, 1, step_mode="m"), conv(bias=True), nn.Flatten(2), nn.Linear(384, 4))
    net = nn.Sequential(Net(lambda n, x: n.inner(x) + n.fc(x.flatten(2)), inner=net, fc=nn.Linear(192, 4)), lif())
    x = ALMOST_SPIKES[kind](IMAGE)
    for grad_x in (True, False):
        check(net, method, native_run(net, x, grad_x=grad_x, steps=2), grad_x=grad_x)


@case(1, 2, 3, 8, 8)
def one_step():
    return two(block())


@case(4, 1, 3, 8, 8)
def one_sample():
    return two(block())


@case(40, 1, 3, 5, 5)
def forty_steps():
    return two(block())


@case(4, 3, 3, 7, 5)
def odd_sizes():
    return two(block())


@case(loss=classify)
def expanded_gradient():
    return nn.Sequential(two(block()), layer.AdaptiveAvgPool2d(1, step_mode="m"), layer.Flatten(step_mode="m"))


@case(loss=torch.sum)
def gradient_of_ones():
    return nn.Sequential(two(block(bias=True)), conv(5, bias=True), lif())


# ---- parts of the batch: with "memory", backward goes over 8 samples (32 images) at a time ---------------------------

LARGE = (4, 20, 3, 8, 8)


@case(*LARGE)
def large_batch():
    return two(block(bias=True))


@case(4, 16, 3, 8, 8, grad_x=False)
def large_batch_without_input_gradient():
    return two(block(), block(6, 5, groups=1, stride=2))


@case(*LARGE)
def large_batch_many_consumers():
    def run(net, x):
        y = net.conv(x)
        h = net.bn(y)
        s = net.lif(h)
        return net.b(s + net.plif(h)) + 0.1 * h[:, :, :5] + net.lif(net.bn(y))[:, :, 1:]
    return Net(run, conv=conv(bias=True), bn=norm(), lif=lif(), plif=plif(), b=block(6, 5))


@case(*LARGE)
def large_batch_frozen_in_part():
    return frozen(nn.Sequential(block(bias=True), block(6), block(6), block(6, 4)), "0.0", "1.1", "2.0.weight",
                  "3.1.bias")


@case(40, 9, 3, 4, 4)
def large_batch_of_many_steps():
    return nn.Sequential(block(), layer.MaxPool2d(2, step_mode="m"), block(6), plif())


@case(4, 20, 3, 7, 5)
def large_batch_odd_sizes():
    return nn.Sequential(block(3, 8), block(8, 7), layer.MaxPool2d(2, 2, 1, step_mode="m"), block(7, 8, groups=1))


@case(4, 20, 3, 24)
def large_batch_one_dimension():
    return nn.Sequential(layer.Conv1d(3, 8, 3, padding=1, step_mode="m"), layer.BatchNorm1d(8, step_mode="m"), lif(),
                         layer.ConvTranspose1d(8, 4, 2, step_mode="m"), layer.BatchNorm1d(4, step_mode="m"), plif())


@case(4, 20, 24)
def large_batch_linear():
    return nn.Sequential(layer.Linear(24, 16, step_mode="m"), layer.BatchNorm1d(16, step_mode="m"), plif(),
                         nn.Linear(16, 8), lif())


# ---- the comparison -----------------------------------------------------------------------------------------------

@lru_cache(maxsize=1)
def native(name: str):
    build, make, how = CASES[name]
    torch.manual_seed(7)
    net, x = build(), make()
    with torch.random.fork_rng():
        wake(net, x)
        assert_awake(net, x)
    return net, native_run(net, x, **how), how


@pytest.mark.parametrize("method", METHOD_PARAMS)
@pytest.mark.parametrize("name", CASES)
def test_three_training_steps_equal_native(name, method):
    net, record, how = native(name)
    check(net, method, record, **how)


def small() -> nn.Module:
    return nn.Sequential(two(block(bias=True), block(6, 5)), layer.MaxPool2d(2, step_mode="m"), conv(5), norm(), lif())


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_float64(method):
    net, x = small().double(), torch.randn(IMAGE, dtype=torch.float64)
    check(wake(net, x), method, native_run(net, x))


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_float64_in_a_large_batch(method):
    net, x = small().double(), torch.randn(LARGE, dtype=torch.float64)
    check(wake(net, x), method, native_run(net, x))


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_large_batch_in_eval_mode(method):
    net, x = small(), torch.randn(LARGE)
    for _ in range(2):
        net(x)
        functional.reset_net(net)
    net = wake(net.eval(), x)
    assert_awake(net, x)
    check(net, method, native_run(net, x))


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_channels_last(method):
    net, x = nn.Sequential(layer.SeqToANNContainer(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), lif(), conv(6), norm(),
                           lif()), torch.randn(IMAGE)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    net = wake(net, x).to(memory_format=torch.channels_last)
    check(net, method, native_run(net, x))


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_batch_size_and_steps_change_between_steps(method):
    net, xs = small(), [torch.randn(t, n, 3, s, s) for t, n, s in ((4, 2, 8), (4, 5, 8), (2, 3, 12), (7, 1, 8))]
    check(wake(net, xs[0]), method, native_run(net, xs, steps=4))


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_step_mode_s(method):
    """The same retrofitted net, called step by step."""
    def steps(net, x):
        functional.set_step_mode(net, "s")
        return torch.stack([net.inner(x_t) for x_t in x])

    net, x = Net(steps, inner=small()), torch.randn(IMAGE)
    wake(net.inner, x)
    check(net, method, native_run(net, x))


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_autocast(method):
    """Against our own neurons alone: their membrane is float32, where the framework's is bfloat16 (see neuron.py)."""
    net, x = nn.Sequential(small(), layer.Flatten(step_mode="m"), nn.Linear(96, 4)), torch.randn(IMAGE)
    wake(net, x)
    how = {"context": lambda: torch.autocast("cpu", torch.bfloat16), "loss": lambda y: classify(y.float())}
    if method != "neuron":
        check(net, method, native_run(convert(copy.deepcopy(net), "neuron"), x, **how), **how)
    else:
        assert all(v.dtype == torch.float32 for v in native_run(convert(net, "neuron"), x, **how)[0].states)


@pytest.mark.parametrize("method", METHOD_PARAMS)
def test_an_empty_batch(method):
    net = small().eval()
    x = torch.randn(4, 0, 3, 8, 8, requires_grad=True)
    y = net(x)
    y2 = convert(net, method)(x)
    assert y.shape == y2.shape == (4, 0, 6, 4, 4)
    y2.sum().backward()
    assert x.grad.shape == x.shape and not net[2].weight.grad.any()


@pytest.mark.parametrize("method", METHOD_PARAMS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_between_training_steps(method, mode):
    net, x = small(), torch.randn(IMAGE)
    ours = convert(copy.deepcopy(wake(net, x)), method)
    for n in (net, ours):
        n.eval()
    with mode():
        y, y2 = net(x), ours(x)
    assert torch.equal(y, y2) and y.any() and not y2.requires_grad
    functional.reset_net(net)
    functional.reset_net(ours)
    net.train()
    record = native_run(net, x, steps=1)
    assert len(neurons(net)) == 3
    check(net, method, record)
