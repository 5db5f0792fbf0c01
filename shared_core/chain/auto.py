"""The retrofit method "auto": the planner's choice, applied."""
from __future__ import annotations

from torch import nn

from ..plan import choose, plan
from ..retrofit import Framework, Plan, exchange_neurons
from .method import compress, recompute

__all__ = ["auto"]


def auto(framework: Framework, net: nn.Module, sample, budget: int | str, optimizer=None, batch_dim: int = 1) -> Plan:
    """The fastest method whose predicted peak fits the budget, as shared_core.memory.plan finds it.

    sample: a tensor like the net's input, or its shape.  budget: bytes, or text such as "24GiB".  optimizer, batch_dim:
    as in plan.  Raises MemextError: nothing fits (the smallest peak is named, and what would have to change).
    """
    method, options = choose(plan(net, sample, budget, optimizer, batch_dim=batch_dim))
    methods = {"neuron": exchange_neurons, "compress": compress, "recompute": recompute}
    return methods[method](framework, net, **options) if method in methods else Plan()
