"""Chains of convolution and neuron that fire, for the tests of share() in SpikingJelly nets."""
from __future__ import annotations

import copy

import torch
from sharing_nets import stepped
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

TAU = 1.5  # lambda = 1/3: no value that halves exactly


def lif(tau: float = TAU, hard: bool = False, detach: bool = True, theta: float = 1.0) -> neuron.LIFNode:
    return neuron.LIFNode(tau=tau, decay_input=False, v_threshold=theta, v_reset=0.0 if hard else None,
                          surrogate_function=surrogate.ATan(), detach_reset=detach)


def chain(depth: int = 4, width: int = 8, norm: bool = False, mode: str = "m", groups: int = 1, **options
          ) -> nn.Sequential:
    """depth times convolution (, norm) and neuron: children depth * (2 or 3). It fires, also with one membrane."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(depth):
        parts.append(layer.Conv2d(width if i else 3, width, 3, padding=1, bias=not norm, groups=groups if i else 1))
        parts[-1].weight.data *= 2.5
        parts += [layer.BatchNorm2d(width)] * norm + [lif(**options)]
    net = nn.Sequential(*copy.deepcopy(parts))
    key = (depth, width, norm, groups, *sorted(options.items()))
    if key not in BIASES:
        BIASES[key] = fitting(net)
    for m, bias in zip(biased(net), BIASES[key], strict=True):
        nn.init.constant_(m.bias, bias)
    functional.set_step_mode(net, mode)
    return net


BIASES: dict[tuple, list[float]] = {}  # of the chains that were built already


def biased(net: nn.Module) -> list[nn.Module]:
    return [m for m in net if getattr(m, "bias", None) is not None]


def fitting(net: nn.Sequential) -> list[float]:
    """Biases with which each layer of the group fires in 15 to 35 % of its steps, found from the first layer on."""
    net, x, node = copy.deepcopy(net), images(8), next(m for m in net if isinstance(m, neuron.LIFNode))
    parts, found = before(net), []
    with torch.no_grad():
        for i, m in enumerate(biased(net)):
            low, high = -4.0, 4.0
            for _ in range(12):
                nn.init.constant_(m.bias, (low + high) / 2)
                out, _ = stepped(parts[:i + 1], x, [0] * (i + 1), tau=node.tau, theta=node.v_threshold,
                                 hard=node.v_reset is not None)
                if 0.15 < out.mean() < 0.35:
                    break
                low, high = (low, (low + high) / 2) if out.mean() > 0.25 else ((low + high) / 2, high)
            found.append((low + high) / 2)
    return found


def neurons(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, neuron.LIFNode | neuron.IFNode)]


def before(net: nn.Sequential) -> list:
    """What stands before each neuron of a chain, as functions of one step."""
    functional.set_step_mode(net, "s")
    found: list = []
    parts: list = []
    for m in net:
        if isinstance(m, neuron.LIFNode):
            found.append(nn.Sequential(*parts))
            parts = []
        else:
            parts.append(m)
    return found


def images(steps: int = 5, batch: int = 2, size: int = 5, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(steps, batch, 3, size, size + 1, generator=torch.Generator().manual_seed(1), dtype=dtype)
