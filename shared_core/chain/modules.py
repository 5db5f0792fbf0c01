"""Torch's layers, run by the functions of this package: one subclass per class of torch.nn, entered by class change.

Each overrides only the method that calls Torch's operator, so a user's or a framework's subclass that ends in
`super().forward` (SpikingJelly's layer.Conv2d) arrives here too, in whatever step mode, container or reshaping.
Where there is nothing to gain (no gradient, torch.compile, torch.func), torch.nn's own method runs.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.nn.parameter import Parameter

from ..coding import is_fake
from . import linear as _linear
from . import norm as _norm
from . import pool as _pool
from .policy import Policy

__all__ = ["NORMS", "PLAIN", "POLICY", "gains"]

POLICY = "_memext_policy_of_layer"  # attribute of a changed module: its Policy


def _policy(module: nn.Module) -> Policy:
    return module.__dict__[POLICY]


def gains(x, *tensors) -> bool:
    """Is there a gradient to come, on plain tensors, in eager mode?"""
    given = [t for t in (x, *tensors) if t is not None]
    return (torch.is_grad_enabled() and any(t.requires_grad for t in given)
            and all(type(t) in (Tensor, Parameter) or is_fake(t) for t in given) and x.is_floating_point()
            and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0)


def _as_autocast_would(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The arguments cast as autocast casts those of a convolution; the caller then runs without autocast."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.dtype in (torch.float32, torch.float16, torch.bfloat16) else t
                 for t in tensors)


def _without_autocast(x: Tensor):
    return torch.autocast(x.device.type, enabled=False)


# ---- convolution and linear ----

def _convolved(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, *options) -> Tensor:
    x, weight, bias = _as_autocast_would(x, weight, bias)
    with _without_autocast(x):
        return _linear.conv(x, weight, bias, _linear.ConvOptions(*options), _policy(module))


class _Conv:
    def _conv_forward(self, input, weight, bias):
        if not gains(input, weight, bias) or (input.dtype != weight.dtype and not _autocast(input)):
            return super()._conv_forward(input, weight, bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * len(self.stride)
        elif isinstance(padding, str):
            both = [d * (k - 1) if padding == "same" else 0 for d, k in zip(self.dilation, self.kernel_size)]
            if any(p % 2 for p in both):
                return super()._conv_forward(input, weight, bias)
            padding = tuple(p // 2 for p in both)
        return _convolved(self, input, weight, bias, self.stride, padding, self.dilation, False,
                          (0,) * len(self.stride), self.groups)


class _ConvTranspose:
    def forward(self, input, output_size=None):
        if not gains(input, self.weight, self.bias) or (input.dtype != self.weight.dtype and not _autocast(input)):
            return super().forward(input, output_size)
        dims = len(self.stride)
        extra = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, dims,
                                     self.dilation)
        return _convolved(self, input, self.weight, self.bias, self.stride, self.padding, self.dilation, True,
                          tuple(extra), self.groups)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


class ChainConv1d(_Conv, nn.Conv1d):
    """torch.nn.Conv1d that keeps spikes as bits. See shared_core.chain.linear."""


class ChainConv2d(_Conv, nn.Conv2d):
    """torch.nn.Conv2d that keeps spikes as bits. See shared_core.chain.linear."""


class ChainConv3d(_Conv, nn.Conv3d):
    """torch.nn.Conv3d that keeps spikes as bits. See shared_core.chain.linear."""


class ChainConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d that keeps spikes as bits. See shared_core.chain.linear."""


class ChainConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d that keeps spikes as bits. See shared_core.chain.linear."""


class ChainConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d that keeps spikes as bits. See shared_core.chain.linear."""


class ChainLinear(nn.Linear):
    """torch.nn.Linear that keeps spikes as bits. See shared_core.chain.linear."""

    def forward(self, input):
        if not gains(input, self.weight, self.bias) or (input.dtype != self.weight.dtype and not _autocast(input)):
            return super().forward(input)
        x, weight, bias = _as_autocast_would(input, self.weight, self.bias)
        with _without_autocast(x):
            return _linear.linear(x, weight, bias)


# ---- pooling ----

class ChainMaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d that keeps spikes as bits and no indices. See shared_core.chain.pool."""

    def forward(self, input):
        if self.return_indices or not gains(input) or input.dim() != 4:
            return super().forward(input)
        return _pool.max_pool2d(input, _pool.pool_of(self), _policy(self).chains)


class ChainMaxPool1d(nn.MaxPool1d):
    """torch.nn.MaxPool1d that keeps spikes as bits and no indices. See shared_core.chain.pool."""

    def forward(self, input):
        if self.return_indices or not gains(input) or input.dim() != 3:
            return super().forward(input)
        one = lambda v, fill: (fill, v[0] if isinstance(v, tuple) else v)  # noqa: E731
        options = _pool.PoolOptions(one(self.kernel_size, 1), one(self.stride, 1), one(self.padding, 0),
                                    one(self.dilation, 1), self.ceil_mode)
        return _pool.max_pool2d(input.unsqueeze(2), options, _policy(self).chains).squeeze(2)


class ChainAvgPool2d(nn.AvgPool2d):
    """torch.nn.AvgPool2d that keeps a shape. See shared_core.chain.pool."""

    def forward(self, input):
        if not gains(input) or not input.is_contiguous():
            return super().forward(input)
        return _pool.avg_pool2d(input, _pair(self.kernel_size), _pair(self.stride), _pair(self.padding),
                                self.ceil_mode, self.count_include_pad, self.divisor_override)


class ChainAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d that keeps a shape. See shared_core.chain.pool."""

    def forward(self, input):
        size = tuple(n if want is None else want for want, n in zip(_pair(self.output_size), input.shape[-2:]))
        if not gains(input) or not input.is_contiguous() or size == (1, 1):  # Torch's mean keeps nothing either
            return super().forward(input)
        return _pool.adaptive_avg_pool2d(input, size)


# ---- norms ----

class _BatchNorm:
    def forward(self, input):
        if not gains(input, self.weight, self.bias):
            return super().forward(input)
        self._check_input_dim(input)
        tracked, factor = self.training and self.track_running_stats, self.momentum or 0.0
        if tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a cumulative average
                factor = 1.0 / float(self.num_batches_tracked)
        batch_statistics = self.training or (self.running_mean is None and self.running_var is None)
        if batch_statistics:
            F._verify_batch_size(input.size())
        use = not self.training or self.track_running_stats
        return _norm.batch_norm(input, self.weight, self.bias, self.running_mean if use else None,
                                self.running_var if use else None, batch_statistics, factor, self.eps, _policy(self))


class ChainBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d that keeps its input or nothing. See shared_core.chain.norm."""


class ChainBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d that keeps its input or nothing. See shared_core.chain.norm."""


class ChainBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d that keeps its input or nothing. See shared_core.chain.norm."""


class ChainGroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm that keeps its input or nothing. See shared_core.chain.norm."""

    def forward(self, input):
        if not gains(input, self.weight, self.bias) or _autocast(input) or not input.is_contiguous():
            return super().forward(input)
        return _norm.group_norm(input, self.num_groups, self.weight, self.bias, self.eps, _policy(self))


class ChainLayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm that keeps its input or nothing. See shared_core.chain.norm."""

    def forward(self, input):
        if not gains(input, self.weight, self.bias) or _autocast(input) or not input.is_contiguous():
            return super().forward(input)
        return _norm.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps, _policy(self))


# What a layer becomes, by the class of torch.nn it is or is derived from. The norms only where chains are wanted.
PLAIN: dict[type[nn.Module], type[nn.Module]] = {ours.__bases__[-1]: ours for ours in (
    ChainConv1d, ChainConv2d, ChainConv3d, ChainConvTranspose1d, ChainConvTranspose2d, ChainConvTranspose3d,
    ChainLinear, ChainMaxPool1d, ChainMaxPool2d, ChainAvgPool2d, ChainAdaptiveAvgPool2d)}
NORMS: dict[type[nn.Module], type[nn.Module]] = {ours.__bases__[-1]: ours for ours in (
    ChainBatchNorm1d, ChainBatchNorm2d, ChainBatchNorm3d, ChainGroupNorm, ChainLayerNorm)}
