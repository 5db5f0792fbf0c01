"""Is the batch of a sample its time? Seen from how neurons are called, before a loop over 8072 "steps" is traced."""
from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ._entering import entered
from ._plan_problem import TimeAsBatch

__all__ = ["Calls"]


class Calls:
    """Counts the calls of every neuron of a fake copy.

    batch_dim, batch: of the traced input.  limit: more calls of one neuron than this are refused, and so is a sequence
    as long as the batch; None: all is allowed, as for the sample itself.  most: of one neuron, so far.
    """

    def __init__(self, batch_dim: int, batch: int, limit: int | None):
        self.batch_dim, self.batch, self.limit, self.most = batch_dim, batch, limit, 0

    def count(self, neurons: Iterable[nn.Module]) -> None:
        for module in neurons:
            module.forward = self._counting(module, module.forward)

    def _counting(self, module: nn.Module, original):
        calls = 0

        def forward(*args, **kwargs):
            nonlocal calls
            calls += 1
            self.most = max(self.most, calls)
            if self.limit is not None:
                self._check(module, calls, args[0] if args else None)
            return original(*args, **kwargs)

        return forward

    def _check(self, module: nn.Module, calls: int, x) -> None:
        steps = x.shape[0] if isinstance(x, Tensor) and x.dim() and getattr(module, "step_mode", None) == "m" else 0
        if calls <= self.limit and steps != self.batch:
            return
        seen = "run over so many time steps" if steps == self.batch else "called ever more often"
        other = 1 - self.batch_dim
        written = ([e.before for e in entered(module)] or [type(module)])[0].__name__
        raise TimeAsBatch(
            f"plan: dimension {self.batch_dim} looks like time: with {self.batch} samples there, a {written} is {seen}"
            f", so no largest batch can be found; pass batch_dim={other} if the samples are in dimension {other}")
