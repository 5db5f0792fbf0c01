"""Inputs and loops for the FusedLeaky tests: the host stepping in Python, and inputs that sit on its threshold."""
from __future__ import annotations

import torch
from torch import Tensor

SHAPE = (3, 37)


def loop(lif, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a user writes: (spk [T, N, *], mem [T, N, *]) of a neuron called step by step with explicit mem."""
    spikes, mems = [], []
    for x_t in x:
        spk, mem = lif(x_t, mem) if mem is not None else lif(x_t)
        spikes.append(spk)
        mems.append(mem)
    return torch.stack(spikes), torch.stack(mems)


@torch.no_grad()
def inputs_at_threshold(host, mem: Tensor, steps: int, seed: int) -> Tensor:
    """Inputs [steps, *mem.shape] that make `host`, started at `mem`, fire at 10-40 % in every step.

    Two of three columns get normal noise, every third noise on a grid of 1/4; 3 % of all elements are driven exactly to
    the threshold, or one ulp of the input below or above. Done by asking the host where it lands without input.
    """
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, *mem.shape, generator=random)
    rates = 0.1 + 0.3 * torch.rand(steps, generator=random)
    pick = torch.rand(steps, *mem.shape, generator=random)
    x = torch.empty_like(noise)
    for t in range(steps):
        # the state before this step's spike, without input: of a neuron with delayed reset
        delay, host.reset_delay = host.reset_delay, True
        u = host(torch.zeros_like(mem), mem)[1].float()
        host.reset_delay = delay
        away = host.threshold - u
        step = noise[t] + away.mean()
        shift = torch.quantile((step - away).flatten().double(), 1 - rates[t].item()).float()
        step = step - shift
        step[..., ::3] = (step[..., ::3] * 4).round() / 4
        at = away.expand_as(step)
        step = torch.where(pick[t] < 0.01, at, step)
        step = torch.where((pick[t] >= 0.01) & (pick[t] < 0.02), torch.nextafter(at, at + 1), step)
        x[t] = torch.where((pick[t] >= 0.02) & (pick[t] < 0.03), torch.nextafter(at, at - 1), step)
        mem = host(x[t], mem)[1].float()
    return x


def assert_tells(spikes: Tensor, mems: Tensor, threshold: Tensor) -> None:
    """The case is worth something: 5-60 % firing, and states within 1e-6 of the threshold occur (delayed reset)."""
    rate = (spikes != 0).float().mean().item()
    assert 0.05 <= rate <= 0.60, f"firing rate {rate:.3f}"
    if mems is not None and mems.numel() > 2000:
        close = ((mems - threshold).abs() < 1e-6).float().mean().item()
        assert close > 0.001, f"share of states at the threshold: {close:.5f}"


def error(found: Tensor, oracle: Tensor) -> float:
    """Norm-relative distance, computed in float64; 0 for two zeros."""
    distance = (found.double() - oracle.double()).norm().item()
    return distance and distance / max(oracle.double().norm().item(), 1e-30)
