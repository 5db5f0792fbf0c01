"""spikingjelly.clock_driven.model of 0.0.0.0.12: Spiking-ResNet and SEW-ResNet, single- and multi-step, on 2.0.0's.

    multi_step_spiking_resnet18(pretrained, progress, T, multi_step_neuron, **neuron_arguments)
    spiking_resnet18(pretrained, progress, single_step_neuron, **neuron_arguments)
The nets, their parameters and their keys are 2.0.0's, which are the same. A multi-step net given [N, C, H, W] runs the
first convolution once and repeats what it gives T times, as there.
"""
from __future__ import annotations

import types

import torch
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import Tensor

from shared_core.errors import MemextError
from sj_memext._host import functional

__all__ = ["SEW_RESNET", "SPIKING_RESNET", "MultiStepSEWResNet", "MultiStepSpikingResNet"]

_SIZES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
          "wide_resnet50_2", "wide_resnet101_2")


class _Repeats:
    """The forward of a multi-step net: [T, N, C, H, W], or [N, C, H, W] with T given to the builder."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns [T, N, classes]."""
        if x.dim() == 5:
            return super().forward(x)
        if self.T is None:
            raise MemextError(f"{type(self).__name__}: the input is {list(x.shape)} and T is None; give "
                              "[T, N, C, H, W], or T to the builder")
        steps = (self.conv1, self.bn1)
        functional.set_step_mode(torch.nn.ModuleList(steps), "s")
        try:
            x = self.bn1(self.conv1(x))
        finally:
            functional.set_step_mode(torch.nn.ModuleList(steps), "m")
        x = self.maxpool(self.sn1(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(2))


class MultiStepSpikingResNet(_Repeats, spiking_resnet.SpikingResNet):
    """Made by the multi_step_ builders."""


class MultiStepSEWResNet(_Repeats, sew_resnet.SEWResNet):
    """Made by the multi_step_ builders."""


def _single(builder):
    def build(*args, single_step_neuron=None, **kwargs):
        return builder(*args, **kwargs, **({"spiking_neuron": single_step_neuron} if single_step_neuron else {}))

    return _named(build, builder.__name__)


def _multi(builder, cls):
    def build(pretrained=False, progress=True, T=None, *args, multi_step_neuron=None, **kwargs):
        if multi_step_neuron is not None:
            kwargs["spiking_neuron"] = multi_step_neuron
        net = builder(pretrained, progress, *args, **kwargs)
        functional.set_step_mode(net, "m")
        net.__class__, net.T = cls, T
        return net

    return _named(build, f"multi_step_{builder.__name__}")


def _named(function, name: str):
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"As clock_driven.model's {name} of 0.0.0.0.12."
    return function


def _all(module: types.ModuleType, prefix: str, cls: type, net: type) -> dict:
    found = {cls.__name__: cls, net.__name__: net}
    for size in _SIZES:
        builder = getattr(module, prefix + size, None)
        if builder is not None:
            found.update({f.__name__: f for f in (_single(builder), _multi(builder, cls))})
    return found


SPIKING_RESNET = _all(spiking_resnet, "spiking_", MultiStepSpikingResNet, spiking_resnet.SpikingResNet)
SEW_RESNET = _all(sew_resnet, "sew_", MultiStepSEWResNet, sew_resnet.SEWResNet)
