"""What the old-release scenarios share: inputs, the grid of neuron options, and one run of a node.

Imported by code that runs on old wheels, so it uses numpy and torch only.
"""
from __future__ import annotations

import itertools

import numpy as np
import torch

SURROGATES = ("ATan", "Sigmoid", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "NonzeroSignLogAbs", "Erf",
              "PiecewiseLeakyReLU", "SquarewaveFourierSeries", "S2NN", "QPseudoSpike")
RESETS = (None, 0.0, -0.3)
STEPS, FIRST, SHAPE = 5, 3, (2, 4)
EVERY = 1  # of the grid's options; the fast tests take each 7th, which meets every surrogate and every reset


def data(seed: int, *shape: int, scale: float = 1.0, shift: float = 0.6) -> torch.Tensor:
    """The same numbers under every release of numpy and torch."""
    return torch.from_numpy((np.random.RandomState(seed).randn(*shape) * scale + shift).astype(np.float32))


def fill(module: torch.nn.Module, seed: int = 3) -> torch.nn.Module:
    """Parameters from `data`, in the order of their names."""
    for i, (_, p) in enumerate(sorted(module.named_parameters())):
        p.data = data(seed + i, *p.shape, scale=0.4, shift=0.1) if p.dim() else p.data
    return module


def grid(name: str, surrogates=SURROGATES):
    """(arguments without the surrogate, surrogate's name) for IFNode, LIFNode or ParametricLIFNode."""
    taus = {"IFNode": [{}]}.get(name) or [
        {("tau" if name == "LIFNode" else "init_tau"): tau, "decay_input": decay} for tau, decay in
        ((1.7, True), (3.0, False))]
    options = itertools.product(RESETS, (False, True), (1.0, 0.6), taus, surrogates)
    for v_reset, detach, v_th, tau, sg in itertools.islice(options, None, None, EVERY):
        yield {"v_reset": v_reset, "detach_reset": detach, "v_threshold": v_th, **tau}, sg


def run(node, multi: bool, with_v_seq: bool = True) -> dict[str, torch.Tensor]:
    """Two calls that carry the state on: spikes, v after every step, gradients of x and of the node's parameter."""
    x = data(1, STEPS, *SHAPE).requires_grad_()
    spikes, seen = [], []
    for part in (x[:FIRST], x[FIRST:]):
        if multi:
            spikes.append(node(part))
            seen.append(node.v_seq if with_v_seq else torch.zeros(len(part), *SHAPE))
        else:
            for step in part:
                spikes.append(node(step)[None])
                seen.append(node.v[None])
    spikes, seen = torch.cat(spikes), torch.cat(seen)
    loss = (spikes * data(5, STEPS, *SHAPE)).sum() + 0.3 * (seen * data(6, STEPS, *SHAPE)).sum() + node.v.sum()
    parameters = list(node.parameters())
    grads = torch.autograd.grad(loss, [x, *parameters])
    return {"spikes": spikes.detach(), "v_seq": seen.detach(), "v": node.v.detach(), "grad_x": grads[0],
            "grad_w": grads[1] if parameters else torch.zeros(())}


def stacked(runs: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([r[name] for r in runs]) for name in runs[0]}
