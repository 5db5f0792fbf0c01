"""What the reversible networks have in common: options of their blocks, neurons, and time for still images."""
from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared_core._again import fork
from shared_core.errors import MemextError
from shared_core.reversible._parts import aside, part_of
from shared_core.reversible.coupling import sequences_checked
from shared_core.temporal._hosts import imported

from .._host import functional, layer

__all__ = ["Invertible", "Neurons", "conv_norm", "finished", "over_time"]


class Invertible(nn.Module):
    """A network of reversible sequences with other layers between them."""

    def check_invertible(self, sample: Tensor, report: list[str] | None = None) -> bool:
        """Whether the inputs of all blocks come back from the outputs of their sequences bit for bit, for this input of
        the network and the neurons' present states.

        report: a list, to which is added why not, with the sequence's name. The network stays as it is.
        Raises MemextError for an input that cannot be coupled at all, as the sequences do.
        """
        net = part_of(self, type(self).__name__, imported())
        with torch.no_grad(), aside([net]), fork(sample.device), sequences_checked(self) as reasons:
            self(sample)
        if report is not None:
            report += reasons
        return not reasons


class Neurons:
    """Makes the neurons of one network: neurons(v_threshold=0.5) for other options than those of all."""

    def __init__(self, spiking_neuron: Callable[..., nn.Module] | None, default: type[nn.Module], defaults: dict,
                 options: dict):
        self.make = default if spiking_neuron is None else spiking_neuron
        self.options = {**defaults, **options} if spiking_neuron is None else options

    def __call__(self, **other) -> nn.Module:
        return self.make(**copy.deepcopy({**self.options, **other}))  # a learnable surrogate is each neuron's own


def conv_norm(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = False, dims: int = 2) -> list[nn.Module]:
    conv, norm = ((layer.Conv1d, layer.BatchNorm1d), (layer.Conv2d, layer.BatchNorm2d))[dims - 1]
    return [conv(inputs, outputs, kernel, padding=kernel // 2, bias=bias), norm(outputs)]


def over_time(stem: nn.Module, x: Tensor, steps: int) -> Tensor:
    """[T, N, C, H, W] through the stem; or an image [N, C, H, W], once, and then shown `steps` times."""
    if x.dim() == 5:
        return stem(x)
    if x.dim() != 4:
        raise MemextError(f"sj_memext.model: the input has shape {tuple(x.shape)}; [T, N, C, H, W] or an image "
                          "[N, C, H, W], which is shown T times, is needed")
    return stem(x.unsqueeze(0)).expand(steps, *(-1,) * 4)


def finished(net: nn.Module) -> nn.Module:
    """With initial weights, in step mode "m"."""
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    functional.set_step_mode(net, "m")
    return net
