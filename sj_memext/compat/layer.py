"""spikingjelly.clock_driven.layer of 0.0.0.0.12: classes that 2.0.0 renamed, changed or dropped.

Source of the equations: SpikingJelly 0.0.0.0.12, clock_driven/layer.py. Where a class of 2.0.0 does the same it is the
base, so that retrofit and the framework's own tools know it.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared_core.errors import MemextError
from sj_memext._host import base
from sj_memext._host import functional as host_functional
from sj_memext._host import layer as host

from . import functional
from ._patches import PATCHES, say

__all__ = ["AXAT", "DCT", "ChannelsPool", "ConvBatchNorm2d", "MultiStepContainer", "MultiStepDropout",
           "MultiStepDropout2d", "MultiStepTemporalWiseAttention", "MultiStepThresholdDependentBatchNorm1d",
           "MultiStepThresholdDependentBatchNorm2d", "MultiStepThresholdDependentBatchNorm3d", "STDPLearner",
           "SeqToANNContainer", "install"]


class MultiStepDropout(host.Dropout):
    """One mask for all steps, kept until reset."""

    def __init__(self, p: float = 0.5):
        super().__init__(p, "m")


class MultiStepDropout2d(host.Dropout2d):
    """One mask for all steps, kept until reset. p is 0.5 here; 2.0.0's Dropout2d has 0.2."""

    def __init__(self, p: float = 0.5):
        super().__init__(p, "m")


class _AnyChildren:
    """2.0.0 refuses children in step mode "m"; 0.0.0.0.12 ran them, with what they were given as the time."""

    def __init__(self, *args):
        nn.Sequential.__init__(self, *args)
        multi = sorted({type(m).__name__ for m in self if getattr(m, "step_mode", "s") == "m"})
        if multi:
            say(f"{type(self).__name__} {multi}",
                f"{type(self).__name__} holds {', '.join(multi)}: as in 0.0.0.0.12 it takes the first dimension inside "
                "the container for the time. Did you mean to put it outside?")


class SeqToANNContainer(_AnyChildren, host.SeqToANNContainer):
    """Stateless modules on [T, N, *], all steps as one batch of T N."""


class MultiStepContainer(_AnyChildren, host.MultiStepContainer):
    """Single-step modules on [T, N, *], one step after the other."""


class MultiStepThresholdDependentBatchNorm1d(host.ThresholdDependentBatchNorm1d):
    """On [T, N, C] or [T, N, C, M]."""


class MultiStepThresholdDependentBatchNorm2d(host.ThresholdDependentBatchNorm2d):
    """On [T, N, C, H, W]."""


class MultiStepThresholdDependentBatchNorm3d(host.ThresholdDependentBatchNorm3d):
    """On [T, N, C, D, H, W]."""


class MultiStepTemporalWiseAttention(host.TemporalWiseAttention):
    """On [T, N, M] or [T, N, C, H, W]."""


class STDPLearner(base.MemoryModule):
    """Spike-timing-dependent plasticity of a Linear layer. 2.0.0's learning.STDPLearner is another: it takes the
    synapse and the neuron, and listens to them.

        pre += spikes in - pre / tau_pre;   post += spikes out - post / tau_post
        weight += lr (f_pre(weight) * spikes in + f_post(weight) * spikes out)
    """

    def __init__(self, tau_pre: float, tau_post: float, f_pre: Callable, f_post: Callable):
        super().__init__()
        self.tau_pre, self.tau_post, self.f_pre, self.f_post = tau_pre, tau_post, f_pre, f_post
        self.register_memory("trace_pre", 0.0)
        self.register_memory("trace_post", 0.0)

    @torch.no_grad()
    def stdp(self, s_pre: Tensor, s_post: Tensor, module: nn.Module, learning_rate: float) -> None:
        """s_pre [C_in], s_post [C_out]: spikes of one step. Changes module.weight in place."""
        if not isinstance(module, nn.Linear):
            raise MemextError(f"STDPLearner.stdp: module is {type(module).__name__}; torch.nn.Linear is needed. For "
                              "convolutions use spikingjelly.activation_based.learning.STDPLearner")
        self.trace_pre = self.trace_pre - self.trace_pre / self.tau_pre + s_pre
        self.trace_post = self.trace_post - self.trace_post / self.tau_post + s_post
        change = self.f_pre(module.weight) * s_pre + self.f_post(module.weight) * s_post.unsqueeze(1)
        module.weight += learning_rate * change


class ConvBatchNorm2d(nn.Module):
    """A Conv2d without bias and its BatchNorm2d."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1,
                 groups: int = 1, padding_mode: str = "zeros", eps: float = 1e-5, momentum: float = 0.1,
                 affine: bool = True, track_running_stats: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False,
                              padding_mode)
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def get_fused_weight(self) -> Tensor:
        return functional.fused_conv2d_weight_of_convbn2d(self.conv, self.bn)

    def get_fused_bias(self) -> Tensor:
        return functional.fused_conv2d_bias_of_convbn2d(self.conv, self.bn)

    def scale_fused_weight(self, k=None, b=None) -> None:
        functional.scale_fused_conv2d_weight_of_convbn2d(self.conv, self.bn, k, b)

    def scale_fused_bias(self, k=None, b=None) -> None:
        functional.scale_fused_conv2d_bias_of_convbn2d(self.conv, self.bn, k, b)

    def get_fused_conv(self) -> nn.Conv2d:
        return functional.fuse_convbn2d(self.conv, self.bn)


class DCT(nn.Module):
    """The discrete cosine transform K X K^T of every k x k block of the last two dimensions.

    K[i, j] = s(i) cos((j + 1/2) pi i / k), with s(0) = sqrt(1/k), else sqrt(2/k). [*, H, W] -> [*, H, W]; both are
    multiples of k.
    """

    def __init__(self, kernel_size: int):
        super().__init__()
        i = torch.arange(kernel_size, dtype=torch.float64)
        scale = torch.where(i == 0, math.sqrt(1 / kernel_size), math.sqrt(2 / kernel_size))
        self.kernel = (scale[:, None] * torch.cos((i[None] + 0.5) * math.pi * i[:, None] / kernel_size)).float()

    def forward(self, x: Tensor) -> Tensor:
        self.kernel = self.kernel.to(x.device)
        k = len(self.kernel)
        blocks = x.unflatten(-1, (-1, k)).unflatten(-3, (-1, k)).transpose(-3, -2)
        return (self.kernel @ blocks @ self.kernel.t()).transpose(-3, -2).flatten(-2).flatten(-3, -2)


class AXAT(nn.Module):
    """A X A^T with a learnable A [out_features, in_features]. [*, in, in] -> [*, out, out]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.A @ x @ self.A.t()


class ChannelsPool(nn.Module):
    """A MaxPool1d or AvgPool1d over the channels. [N, C, *] -> [N, C', *]."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return pooled.reshape(x.shape[0], -1, *x.shape[2:])


# ---- in the framework's own module, for code of 0.0.0.0.13 and 0.0.0.0.14 --------------------------------------------

def install() -> None:
    PATCHES.set(host.StepModeContainer, "__init__", _without_step_mode(host.StepModeContainer.__init__))
    PATCHES.set(host.DropConnectLinear, "__init__", _state_mode(host.DropConnectLinear.__init__))
    PATCHES.set(host.Delay, "multi_step_forward", _delayed)


def _delayed(self, x_seq: Tensor) -> Tensor:
    """A sequence starts from zeros, as until 0.0.0.0.14; 2.0.0 goes on from the call before."""
    return host_functional.delay(x_seq, self.delay_steps)


def _without_step_mode(original):
    def __init__(self, stateful: bool, *args, **kwargs):
        if args and isinstance(args[0], nn.Module):  # (stateful, *modules); 2.0.0 has the step mode in between
            args = (kwargs.pop("step_mode", "s"), *args)
        original(self, stateful, *args, **kwargs)

    return __init__


def _state_mode(original):
    def __init__(self, *args, **kwargs):
        if "state_mode" in kwargs:  # so it was spelled
            kwargs["step_mode"] = kwargs.pop("state_mode")
        original(self, *args, **kwargs)

    return __init__
