"""The retrofit method "auto": the planner's choice, applied."""
from __future__ import annotations

from torch import nn

from ..errors import MemextError
from ..plan import choose, plan
from ..retrofit import Framework, Plan, exchange_neurons
from .method import compress, recompute

__all__ = ["auto"]


def auto(framework: Framework, net: nn.Module, sample=None, budget: int | str | None = None, optimizer=None,
         batch_dim: int = 1) -> Plan:
    """The fastest method whose predicted peak fits the budget, as shared_core.memory.plan finds it.

    sample: a tensor like the net's input, or its shape.  budget: bytes, or text such as "24GiB".  optimizer, batch_dim:
    as in plan.  Raises MemextError: no sample or budget; nothing fits (the smallest peak is named, and what would have
    to change).
    """
    if sample is None or budget is None:
        raise MemextError(f"{framework.package}.retrofit: method 'auto' needs a sample and a budget, and "
                          f"{'neither' if sample is None and budget is None else 'one of them'} was given; for example "
                          "retrofit(net, 'auto', sample=x, budget='24GiB', optimizer='adamw')")
    found = plan(net, sample, budget, optimizer, batch_dim=batch_dim)
    method, options = choose(found)
    methods = {"neuron": exchange_neurons, "compress": compress, "recompute": recompute}
    changes = methods[method](framework, net, **options) if method in methods else Plan()
    changes.notes = [f"auto: {found.chosen.name}; predicted peak {found.chosen.peak.peak / 2**20:.1f} MiB of "
                     f"{found.budget / 2**20:.1f} MiB"]
    return changes
