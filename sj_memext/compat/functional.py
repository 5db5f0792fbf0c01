"""spikingjelly.clock_driven.functional of 0.0.0.0.12, and what 0.0.0.0.14's had that 2.0.0's has not.

Source: SpikingJelly 0.0.0.0.12, clock_driven/functional.py; what is not here is 2.0.0's own.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from sj_memext._host import base
from sj_memext._host import functional as host

from ._arguments import check_backend
from ._patches import PATCHES, say

__all__ = ["fuse_convbn2d", "fused_conv2d_bias_of_convbn2d", "fused_conv2d_weight_of_convbn2d", "install", "reset_net",
           "scale_fused_conv2d_bias_of_convbn2d", "scale_fused_conv2d_weight_of_convbn2d", "set_backend"]


def reset_net(net: nn.Module) -> None:
    """reset() of every module that has one, looked up at every call (2.0.0 remembers the modules of the first)."""
    for module in net.modules():
        if callable(getattr(module, "reset", None)):
            module.reset()


def set_backend(net: nn.Module, backend: str, instance: type | tuple[type, ...] = (nn.Module,)) -> None:
    """No backend has an effect any more: noted in the modules' attribute, and said once."""
    check_backend(backend, "functional.set_backend")
    say("set_backend", f"functional.set_backend(net, {backend!r}) has no effect on SpikingJelly 2: the device of the "
                       "input chooses the kernel")
    for module in net.modules():
        if isinstance(module, instance) and isinstance(module, base.MemoryModule):
            module.backend = backend


# ---- a convolution with the batch norm behind it, as one ---------------------------------------------------------

def _scale(bn: nn.BatchNorm2d) -> Tensor:
    return bn.weight / (bn.running_var + bn.eps).sqrt()


def _no_bias(conv: nn.Conv2d) -> None:
    assert conv.bias is None, "the convolution before the batch norm must have no bias"


def fused_conv2d_weight_of_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d) -> Tensor:
    """[C_out, C_in, k, k]: the weight times gamma / sqrt(var + eps), per output channel."""
    _no_bias(conv2d)
    return conv2d.weight * _scale(bn2d).view(-1, 1, 1, 1)


def fused_conv2d_bias_of_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d) -> Tensor:
    """[C_out]: beta - mean gamma / sqrt(var + eps)."""
    _no_bias(conv2d)
    return bn2d.bias - bn2d.running_mean * _scale(bn2d)


@torch.no_grad()
def scale_fused_conv2d_weight_of_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d, k=None, b=None) -> None:
    """The convolution's weight times k, plus b, in place."""
    _no_bias(conv2d)
    if k is not None:
        conv2d.weight.mul_(k)
    if b is not None:
        conv2d.weight.add_(b)


@torch.no_grad()
def scale_fused_conv2d_bias_of_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d, k=None, b=None) -> None:
    """The fused bias times k, plus b, in place in the batch norm: its bias and running mean."""
    _no_bias(conv2d)
    if k is not None:
        bn2d.bias.mul_(k)
        bn2d.running_mean.mul_(k)
    if b is not None:
        bn2d.bias.add_(b)


@torch.no_grad()
def fuse_convbn2d(conv2d: nn.Conv2d, bn2d: nn.BatchNorm2d, k=None, b=None) -> nn.Conv2d:
    """A convolution that computes what both do in eval mode. k, b: without effect, as in 0.0.0.0.12."""
    fused = nn.Conv2d(conv2d.in_channels, conv2d.out_channels, conv2d.kernel_size, conv2d.stride, conv2d.padding,
                      conv2d.dilation, conv2d.groups, bias=True, padding_mode=conv2d.padding_mode)
    fused.weight.data = fused_conv2d_weight_of_convbn2d(conv2d, bn2d)
    fused.bias.data = fused_conv2d_bias_of_convbn2d(conv2d, bn2d)
    return fused


# ---- in the framework's own module, for code of 0.0.0.0.13 and 0.0.0.0.14 --------------------------------------------

def install() -> None:
    from spikingjelly.activation_based.learning import online_learning
    for function in (set_backend, fuse_convbn2d, fused_conv2d_weight_of_convbn2d, fused_conv2d_bias_of_convbn2d,
                     scale_fused_conv2d_weight_of_convbn2d, scale_fused_conv2d_bias_of_convbn2d):
        PATCHES.add(host, function.__name__, function)
    for name in ("ottt_online_training", "fptt_online_training"):
        PATCHES.add(host, name, getattr(online_learning, name))
    PATCHES.add(host, "fptt_online_training_init_w_ra", fptt_online_training_init_w_ra)
    PATCHES.set(host, "reset_net", _uncached(host.reset_net))
    PATCHES.add(base, "check_backend_library", check_backend_library)


def fptt_online_training_init_w_ra(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The running averages that fptt_online_training starts from: the parameters' own storage, so that the first
    optimizer step changes them, too, as until 0.0.0.0.14 (learning.online_learning's are copies)."""
    return [p.data for group in optimizer.param_groups for p in group["params"]]


def check_backend_library(backend: str) -> None:
    """Nothing to check: no backend needs CuPy or Lava any more. Raises MemextError for a name that none had."""
    check_backend(backend, "check_backend_library")


def _uncached(original):
    def reset_net(net: nn.Module):
        host.invalidate_reset_cache(net)  # a module that was exchanged since is found, as in 0.0.0.0.14
        return original(net)

    reset_net.__doc__ = original.__doc__
    return reset_net
