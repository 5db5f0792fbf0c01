"""Quantization tools of both frameworks around our neurons: weights through SpikingJelly's `quantize`, states through
snnTorch's `functional.quant`. Values and gradients are those of the native net."""
import pytest
import snntorch as snn
import torch
from interop_nets import FORMS, build, in_form, run, sample
from snntorch.functional import quant
from spikingjelly.activation_based import layer, neuron, quantize
from torch import nn
from torch.nn.utils import parametrize

import snntorch_memext
from snntorch_memext.neurons import FusedLeaky, FusedSynaptic, why_host_path

GRADIENT = 1e-5  # of the norm: float32, sums in another order


class Quantized(nn.Module):
    """A weight as one of SpikingJelly's functions leaves it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, weight):
        return self.function(weight)


FUNCTIONS = {"step": lambda w: quantize.step_quantize(w, 0.25),
             "k bits": lambda w: (quantize.k_bit_quantize(quantize.clamp_by_linear(w), 3) - 0.5) * 4,
             "affine k bits": lambda w: quantize.affine_k_bit_quantize(w, 4, torch.tensor(0.2), torch.tensor(0.5)) * 5
             - 2.5,
             "8 bits": lambda w: (quantize.round(quantize.clamp(w, -1.0, 1.0) * 127)) / 127}


def quantized(net, function):
    for module in net:
        if isinstance(module, layer.Conv2d | layer.Linear):
            parametrize.register_parametrization(module, "weight", Quantized(function))
    return net


def trained(net, x):
    out = run(net, x)
    out.square().mean().backward()
    return out.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_quantized_weights(name, mode):
    wanted, gradient = trained(quantized(build(mode), FUNCTIONS[name]), sample())
    assert 0.02 < wanted.mean() < 0.98 and gradient.norm() > 0
    for form in FORMS:
        out, got = trained(quantized(in_form(form, mode), FUNCTIONS[name]), sample())
        assert torch.equal(out, wanted) and (got - gradient).norm() < GRADIENT * gradient.norm(), form


def test_weights_that_were_quantized_before_the_retrofit():
    import sj_memext

    net = quantized(build(), FUNCTIONS["step"])
    wanted, gradient = trained(net, sample())
    net.zero_grad()
    out, got = trained(sj_memext.retrofit(net, "recompute", prefer="memory"), sample())
    assert torch.equal(out, wanted) and (got - gradient).norm() < GRADIENT * gradient.norm()


def test_neurons_that_count_levels_are_left_to_the_framework():
    """ILIFNode and its quantizer compute something else than LIF: left, and said."""
    import sj_memext

    net = nn.Sequential(layer.Linear(8, 8, step_mode="m"), neuron.ILIFNode(step_mode="m"),
                        layer.Linear(8, 8, step_mode="m"), neuron.LIFNode(step_mode="m"))
    x = torch.rand(4, 3, 8) * 4
    wanted = run(net, x)
    sj_memext.retrofit(net)
    (name, kind, why), = sj_memext.report(net).skipped
    assert (name, kind) == ("1", "ILIFNode") and "overrides" in why and torch.equal(run(net, x), wanted)


# ---- snnTorch: states on a grid ----

QUANTIZERS = {"uniform": lambda: quant.state_quant(num_bits=4, uniform=True, threshold=1.0),
              "non-uniform": lambda: quant.state_quant(num_bits=4, uniform=False, threshold=1.0),
              "around zero": lambda: quant.state_quant(num_bits=3, uniform=False, thr_centered=False, threshold=1.0)}


def stepped(neurons, x):
    """Spikes, membranes and the gradient of x."""
    x = x.clone().requires_grad_()
    spikes, mems = [], []
    for step in x:
        spk, *_, mem = neurons(step)
        spikes.append(spk)
        mems.append(mem)
    (torch.stack(spikes).sum() + torch.stack(mems).square().sum()).backward()
    return torch.stack(spikes).detach(), torch.stack(mems).detach(), x.grad


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
@pytest.mark.parametrize("form", ["fused", "neuron"])
def test_quantized_states(form, kind, name):
    decays = {"alpha": 0.6} if kind == "Synaptic" else {}
    make = lambda: getattr(snn, kind)(**decays, beta=0.8, state_quant=QUANTIZERS[name]())  # noqa: E731
    x = torch.rand(7, 3, 11) * 1.5
    wanted = stepped(make(), x)
    if form == "fused":
        with snntorch_memext.substitute():
            ours = make()
    else:
        ours = snntorch_memext.retrofit(nn.Sequential(make()))[0]
    assert isinstance(ours, FusedLeaky | FusedSynaptic) and "state_quant" in why_host_path(ours)
    assert 0.05 < wanted[0].mean() < 0.95 and wanted[1].unique().numel() <= 17  # 2^4 levels, and 0
    for got, native in zip(stepped(ours, x), wanted, strict=True):
        assert torch.equal(got, native)


def test_whole_sequences_have_quantized_states_too():
    with snntorch_memext.substitute():
        lif = snn.Leaky(beta=0.8, state_quant=QUANTIZERS["uniform"]())
    x = torch.rand(7, 3, 11) * 1.5
    wanted = stepped(snn.Leaky(beta=0.8, state_quant=QUANTIZERS["uniform"]()), x)
    spikes, mems = lif.multi_step(x, record=True)
    assert torch.equal(spikes, wanted[0]) and torch.equal(mems, wanted[1])
