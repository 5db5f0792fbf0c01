"""What is run again in the backward pass and what is kept: one choice per layer, by bytes saved per operation repeated.

A convolution's output costs 4 bytes an element to keep, and 2 K operations an element to make again, K being the
products in one output value (input channels per group times kernel size). Measured figures: docs/design/recompute.md.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["PREFERENCES", "Policy", "in_chunks", "worth_running_again"]

# Largest K that is run again. balanced: what the faster neuron and norm pay for, so that the step is not slower than
# the framework's own.
PREFERENCES = {"speed": 0, "balanced": 200, "memory": math.inf}


@dataclass(eq=False)
class Policy:
    """level: "compress" (keep spikes as bits) or "recompute" (and rebuild norms and neurons).  prefer: see PREFERENCES.

    One object is shared by all layers of a net. largest: bytes of the largest layer output seen so far.
    overwritten, copied: how many gradients were, and could not be, written over in place.
    """

    level: str = "recompute"
    prefer: str = "balanced"
    largest: int = 0
    overwritten: int = 0
    copied: int = 0

    def count(self, overwritten: bool) -> bool:
        if overwritten:
            self.overwritten += 1
        else:
            self.copied += 1
        return overwritten

    def notes(self) -> list[str]:
        """For the report of a retrofitted net."""
        if not self.overwritten + self.copied:
            return []
        return [f"{self.overwritten} gradients were overwritten in place; {self.copied} had another owner and were "
                "copied"]

    def note(self, output: Tensor) -> None:
        self.largest = max(self.largest, output.numel() * output.element_size())

    @property
    def chains(self) -> bool:
        return self.level == "recompute"


def worth_running_again(node, policy: Policy) -> bool:
    """May the layer `node` (a node of this package) be run again to spare keeping its output?"""
    products = getattr(node, "products", None)
    return products is None or products <= PREFERENCES[policy.prefer]


def in_chunks(node, output_bytes: int, policy: Policy) -> bool:
    """Is the backward pass of this layer, whose output is run again, to go over parts of the batch (_chunks.py)?

    Only where the peak is: each chunked layer is run once more.
    """
    return output_bytes > policy.largest // 2 and worth_running_again(node, policy)
