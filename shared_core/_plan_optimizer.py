"""What an optimizer keeps from step to step, and needs during one: asked of the optimizer itself, in miniature."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ._memory_graph import tensors_in
from .errors import MemextError

__all__ = ["NAMES", "OptimizerCost", "cost_of"]

# Names for the command line; "sgd" alone keeps no state.
NAMES: dict[str, Callable] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    **{cls.__name__.lower(): cls for cls in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam,
                                             torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta,
                                             torch.optim.RMSprop, torch.optim.Rprop)},
}
_ELEMENTS = 4096


@dataclass(frozen=True)
class OptimizerCost:
    """per_byte: bytes of state per byte of parameters.  per_largest, per_all: bytes that a step needs meanwhile, per
    byte of the largest parameter and of all together."""

    per_byte: float
    per_largest: float
    per_all: float

    def state(self, sizes: Sequence[int]) -> int:
        return round(self.per_byte * sum(sizes))

    def transients(self, sizes: Sequence[int]) -> int:
        return round(self.per_largest * max(sizes, default=0) + self.per_all * sum(sizes))


def cost_of(optimizer, foreach: bool) -> OptimizerCost | None:
    """optimizer: a name, a torch.optim class, a function of parameters, an optimizer, or None for none.

    foreach: does it work on all parameters at once, as Torch's do on a GPU?  Raises MemextError: none of these, or its
    step cannot be run.
    """
    if optimizer is None:
        return None
    make = _factory(optimizer)
    try:
        one, two = (_probe(make, count, foreach) for count in (1, 3))
    except Exception as problem:
        raise MemextError(f"plan: a step of optimizer {_shown(optimizer)} on two small parameters raised "
                          f"{type(problem).__name__}: {problem}; pass one of {', '.join(NAMES)}, or None") from problem
    unit = 4 * _ELEMENTS
    per_all = max(0.0, (two[1] - one[1]) / (2 * unit))
    return OptimizerCost(one[0] / unit, max(0.0, one[1] / unit - per_all), per_all)


def _factory(optimizer) -> Callable:
    if isinstance(optimizer, str):
        if optimizer.lower() not in NAMES:
            raise MemextError(f"plan: optimizer is {optimizer!r}; allowed: {', '.join(NAMES)}, a torch.optim class or "
                              "optimizer, a function of the parameters, or None")
        return NAMES[optimizer.lower()]
    if isinstance(optimizer, torch.optim.Optimizer):
        allowed = inspect.signature(type(optimizer)).parameters
        options = {name: value for name, value in optimizer.defaults.items() if name in allowed}
        return partial(type(optimizer), **options)
    if callable(optimizer):
        return optimizer
    raise MemextError(f"plan: optimizer is {type(optimizer).__name__}; allowed: a name ({', '.join(NAMES)}), a "
                      "torch.optim class or optimizer, a function of the parameters, or None")


def _probe(make: Callable, count: int, foreach: bool) -> tuple[int, int]:
    """(bytes of state, bytes that the second step allocates) for `count` parameters of one size."""
    from .memory import measure

    parameters = [nn.Parameter(torch.zeros(64, _ELEMENTS // 64)) for _ in range(count)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    made = make(parameters)
    if foreach:
        for group in made.param_groups:
            if group.get("foreach", False) is None:
                group["foreach"] = True
    made.step()
    tensors = {t.untyped_storage()._cdata: t for state in made.state.values() for t in tensors_in(state)
               if isinstance(t, Tensor)}
    state = sum(t.untyped_storage().nbytes() for t in tensors.values() if t.numel() > 1)
    return state, measure(made.step, timeline=False).peak_bytes


def _shown(optimizer) -> str:
    return repr(optimizer) if isinstance(optimizer, str) else getattr(optimizer, "__name__", type(optimizer).__name__)
