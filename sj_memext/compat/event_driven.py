"""spikingjelly.event_driven of 0.0.0.0.12 to 0.0.0.0.14, which 2.0.0's timing_based does not answer for any more.

2.0.0 has classes of the same names in timing_based that take other arguments and other inputs (lists of events instead
of one spike time per input), so these are written out here. Source: SpikingJelly 0.0.0.0.12, event_driven/neuron.py and
encoding.py; Gutig and Sompolinsky 2006 (Tempotron); Bohte et al. 2002 (Gaussian tuning).
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared_core.errors import MemextError

from ._patches import PATCHES

__all__ = ["GaussianTuning", "Tempotron", "install"]


class Tempotron(nn.Module):
    """v[n, o, t] = sum_i weight[o, i] v0 K(t - t_i),  K(t) = exp(-t / tau) - exp(-t / tau_s) for t >= 0.

    v0 scales the largest K to v_threshold. T: number of time steps.
    """

    def __init__(self, in_features: int, out_features: int, T: int, tau: float = 15.0, tau_s: float = 15.0 / 4,
                 v_threshold: float = 1.0):
        super().__init__()
        self.tau, self.tau_s, self.T, self.v_threshold = tau, tau_s, T, v_threshold
        self.fc = nn.Linear(in_features, out_features, bias=False)
        peak = tau * tau_s * math.log(tau / tau_s) / (tau - tau_s)
        self.v0 = v_threshold / (math.exp(-peak / tau) - math.exp(-peak / tau_s))

    @staticmethod
    def psp_kernel(t: Tensor, tau: float, tau_s: float) -> Tensor:
        """K(t), 0 for t < 0."""
        return (torch.exp(-t / tau) - torch.exp(-t / tau_s)) * (t >= 0).float()

    @staticmethod
    def mse_loss(v_max: Tensor, v_threshold, label: Tensor, num_classes: int) -> Tensor:
        """Mean over the batch of (v_max - v_threshold)^2 of the neurons that fire and should not, or the reverse."""
        wrong = ((v_max >= v_threshold).float() != F.one_hot(label, num_classes)).float()
        return (((v_max - v_threshold) * wrong) ** 2).sum() / label.shape[0]

    def forward(self, in_spikes: Tensor, ret_type: str) -> Tensor:
        """in_spikes [N, in_features]: time of each input's spike, negative for none. ret_type: "v" [N, out, T], "v_max"
        [N, out], or "spikes" [N, out], the time of the peak where it reaches the threshold, else its negative."""
        if ret_type not in ("v", "v_max", "spikes"):
            raise MemextError(f"Tempotron: ret_type is {ret_type!r}; allowed: 'v', 'v_max', 'spikes'")
        t = torch.arange(self.T, device=in_spikes.device)
        spikes = in_spikes.unsqueeze(-1)
        current = self.v0 * self.psp_kernel(t - spikes, self.tau, self.tau_s) * (spikes >= 0).float()
        v = self.fc(current.transpose(1, 2)).transpose(1, 2)
        if ret_type == "v":
            return v
        v_max = F.max_pool1d(v, kernel_size=self.T).squeeze()
        if ret_type == "v_max":
            return v_max
        sign = (v_max >= self.v_threshold).float() * 2 - 1
        soft = (F.softmax(v * self.T, dim=2) * t).sum(dim=2) * sign  # carries the gradient
        return soft + (v.argmax(dim=2) * sign - soft).detach()


class GaussianTuning:
    """m neurons per feature, each with a Gaussian of its own; the stronger the response, the earlier the spike.

    mu_i = x_min + (2 i - 3) / 2 (x_max - x_min) / (m - 2), i = 1..m;  sigma^2 = ((x_max - x_min) / (1.5 (m - 2)))^2
    """

    def __init__(self, n: int, m: int, x_min: Tensor, x_max: Tensor):
        if m <= 2:
            raise MemextError(f"GaussianTuning: m is {m}; more than 2 neurons per feature are needed")
        self.n, self.m = n, m
        i = torch.arange(1, m + 1, device=x_min.device).float()
        width = ((x_max - x_min) / (m - 2)).unsqueeze(-1)
        self.mu = x_min.unsqueeze(-1) + (2 * i - 3) / 2 * width
        self.sigma2 = (width / 1.5).square().repeat(1, m)

    def encode(self, x: Tensor, max_spike_time: int = 50) -> Tensor:
        """x [N, n, k] -> spike times [N, n, k, m], -1 for no spike."""
        y = torch.exp(-(x.unsqueeze(-1) - self.mu.unsqueeze(1)).square() / 2 / self.sigma2.unsqueeze(1))
        times = (max_spike_time * (1 - y)).round()
        times[times >= max_spike_time] = -1
        return times


def install() -> None:
    """2.0.0's classes of these names say what to use, where they are given the old arguments."""
    from spikingjelly.timing_based import encoding, neuron
    PATCHES.set(neuron.Tempotron, "__init__", _refuse(neuron.Tempotron.__init__, "T", "neuron.Tempotron"))
    PATCHES.set(neuron.Tempotron, "forward", _refuse(neuron.Tempotron.forward, "ret_type", "neuron.Tempotron"))
    PATCHES.add(encoding.GaussianTuning, "encode", _no_encode)


def _refuse(original, argument: str, name: str):
    def method(self, *args, **kwargs):
        if argument in kwargs or (argument == "ret_type" and len(args) == 2 and isinstance(args[1], str)):
            raise MemextError(f"timing_based.{name}: {argument}= is of 0.0.0.0.14; SpikingJelly 2's takes events "
                              "instead of one spike time per input. Import the old one: from "
                              "spikingjelly.event_driven.neuron import Tempotron")
        return original(self, *args, **kwargs)

    return method


def _no_encode(self, *args, **kwargs):
    raise MemextError("timing_based.encoding.GaussianTuning.encode is of 0.0.0.0.14; SpikingJelly 2's is called "
                      "instead, and returns events. Import the old one: from spikingjelly.event_driven.encoding import "
                      "GaussianTuning")
