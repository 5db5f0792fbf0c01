"""What the networks of EfficientLIF-Net have in common: the neuron, batch norm, initial weights, and sharing."""
from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from shared_core.errors import MemextError
from shared_core.lif_memory import sharing_of

from .._host import functional, layer, neuron, surrogate

__all__ = ["Parts", "build", "check_counts"]


class Parts:
    """Makes the layers of one network.

    spiking_neuron: called with `options` for every neuron; None: the paper's (Eq. 1), LIFNode with a leak of 0.25
        (tau = 4/3), input not scaled, soft reset, the arctan surrogate of Section III-B and a detached reset, of which
        `options` may change any. The authors' own code scales the input by 1/tau: pass decay_input=True for that.
    batch_norm: False: convolutions have a bias instead.
    groups: of every convolution but the first and those of shortcuts (Table III).
    """

    def __init__(self, spiking_neuron: Callable[..., nn.Module] | None, options: dict, batch_norm: bool, groups: int):
        if spiking_neuron is None:
            spiking_neuron = neuron.LIFNode
            options = {"tau": 4 / 3, "decay_input": False, "v_reset": None, "detach_reset": True,
                       "surrogate_function": surrogate.ATan(), **options}
        self.spiking_neuron, self.options = spiking_neuron, options
        self.batch_norm, self.groups = batch_norm, groups

    def neuron(self) -> nn.Module:
        return self.spiking_neuron(**copy.deepcopy(self.options))  # a learnable surrogate is each neuron's own

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, grouped: bool = True,
             dims: int = 2) -> list[nn.Module]:
        """Convolution, and batch norm where there is any. The output is as large as the input, divided by stride."""
        conv, norm = ((layer.Conv1d, layer.BatchNorm1d), (layer.Conv2d, layer.BatchNorm2d))[dims - 1]
        made = [conv(inputs, outputs, kernel, stride, kernel // 2, groups=self.groups if grouped else 1,
                     bias=not self.batch_norm)]
        return [*made, norm(outputs)] if self.batch_norm else made


def check_counts(what: str, **counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MemextError(f"{what}: {name}={value!r}; allowed: a positive whole number")


def build(net: nn.Module, sharing: str | None, step_mode: str) -> nn.Module:
    """The finished network: initial weights, step mode, shared membranes.

    net.sharing_groups(): names of the neurons that [L] gives one membrane, a list per membrane.
    Raises MemextError: sharing is none of the forms; step_mode is neither "s" nor "m".
    """
    if step_mode not in ("s", "m"):
        raise MemextError(f"sj_memext.model: step_mode={step_mode!r}; allowed: 'm', 's'")
    how = sharing_of(sharing)
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    functional.set_step_mode(net, step_mode)
    if how.layers or how.channels > 1:
        from ..sharing import share  # imports the neurons, and needs none of this without sharing

        share(net, layers=net.sharing_groups() if how.layers else None, channels=how.channels, batch_norm="per_step")
    return net
