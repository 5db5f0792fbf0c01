"""spikingjelly.clock_driven.spike_op: layers that kept their input, spikes, as booleans for the backward pass.

The values are those of the Torch layers; retrofit(net, "compress") keeps spikes as bits, for every layer.
"""
from __future__ import annotations

from torch import nn
from torch.nn import functional as F

__all__ = ["SpikeConv1d", "SpikeConv2d", "SpikeConv3d", "SpikeLinear", "spike_conv1d", "spike_conv2d", "spike_conv3d",
           "spike_linear"]

spike_linear, spike_conv1d, spike_conv2d, spike_conv3d = F.linear, F.conv1d, F.conv2d, F.conv3d


class SpikeLinear(nn.Linear):
    """torch.nn.Linear."""


class SpikeConv1d(nn.Conv1d):
    """torch.nn.Conv1d."""


class SpikeConv2d(nn.Conv2d):
    """torch.nn.Conv2d."""


class SpikeConv3d(nn.Conv3d):
    """torch.nn.Conv3d."""
