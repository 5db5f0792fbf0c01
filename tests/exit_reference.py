"""Early exit as the paper describes it, without anybody leaving the batch: the oracle of the early exit tests."""
from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

CLOSE = 2e-6  # of the largest output: the batch has another size when samples have left, and sums another order


def stop(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scores [T, N, K] of every step -> (prediction, outputs, steps, entropy) of each sample, one after the other."""
    found = []
    for sample in scores.double().unbind(1):
        for t in range(1, len(sample) + 1):
            mean = sum(sample[:t]) / t
            p = [math.exp(v) / sum(math.exp(w) for w in mean.tolist()) for v in mean.tolist()]
            h = -sum(q * math.log(q) for q in p) / math.log(len(p))
            if h < threshold:
                break
        found.append((int(mean.argmax()), mean, t, h))
    predictions, outputs, steps, h = zip(*found)
    return torch.tensor(predictions), torch.stack(outputs), torch.tensor(steps), torch.tensor(h)


def between(scores: Tensor) -> float:
    """A threshold with which samples stop at as many different steps as can be, about equally many early and late; and
    far enough from every entropy that rounding does not matter."""
    means = scores.double().cumsum(0) / torch.arange(1, len(scores) + 1).view(-1, 1, 1)
    p = means.softmax(-1)
    h = -(p * p.log()).sum(-1) / math.log(p.shape[-1])
    values = h[:-1].flatten().sort().values
    found = []
    for low, high in pairwise(values):
        if high - low > 2e-5:
            at = (low + high) / 2
            below = h < at
            below[-1] = True
            steps = below.int().argmax(0)
            found.append((len(steps.unique()), -abs(float(steps.double().mean()) - (len(h) - 1) / 2), float(at)))
    return max(found)[2]


def assert_same(result, scores: Tensor, threshold: float, many: bool = True) -> None:
    """result is that of the oracle on these scores; some samples have stopped early, at several steps (many), and some
    have not."""
    prediction, outputs, steps, h = stop(scores, threshold)
    early = steps < len(scores)
    assert 0 < early.sum() and (not many or (len(steps.unique()) > 2 and early.sum() < len(steps))), steps
    assert torch.equal(result.steps, steps), (result.steps, steps)
    assert torch.equal(result.prediction, prediction)
    assert (result.outputs - outputs).abs().max() <= CLOSE * outputs.abs().max().clamp_min(1)
    assert (result.entropy - h).abs().max() < 1e-5
    assert result.outputs.abs().max() > 0 and len(outputs.unique(dim=0)) > 3  # samples differ
