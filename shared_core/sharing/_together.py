"""What the members of one group have in common, beside the membrane itself."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import MemextError

__all__ = ["Together"]


@dataclass(frozen=True)
class Together:
    """The names of a group's members, in the order in which they were given."""

    names: tuple[str, ...]

    def notes(self) -> list[str]:
        """For the report."""
        return [f"{', '.join(self.names)}: one membrane"]

    def check(self, member: int, state, size: Sequence[int]) -> None:
        """Called by a member before it runs. state: the membrane as it is, size: as it has to be, without the batch.

        The frameworks start a state of another shape anew without a word: right where the batch changed, and here the
        loss of what the layer before left. Raises MemextError: the sizes differ, and the membrane is not at rest.
        """
        if not isinstance(state, Tensor) or state.dim() == 0 or state.shape[1:] == tuple(size):
            return
        if state.numel() and bool(state.any()):
            others = ", ".join(repr(name) for i, name in enumerate(self.names) if i != member)
            raise MemextError(f"share: the membrane that {self.names[member]!r} shares with {others} has size "
                              f"{tuple(state.shape[1:])}, and its activations need {tuple(size)}. Layers that share a "
                              "membrane need one size: restore the net and group it otherwise (or, if the net has just "
                              "run on input of another size, reset it first)")
