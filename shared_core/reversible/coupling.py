"""ReversibleBlock and ReversibleSequence: residual blocks whose inputs are brought back from their outputs (S-RevSNN).

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)           x1, x2: the halves of the channels; F, G: spiking blocks

Source: Zhang and Zhang 2024, "Memory-Efficient Reversible Spiking Neural Networks". In float arithmetic the right
column does not give x back, and one flipped spike grows into a wrong network. Differs from it: what is added lies on a
grid, so that x comes back to the last bit.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .._again import fork
from .._tape import current
from ..errors import MemextError
from ._coupled import Coupled
from ._coupling import Coupling
from ._grid import GRID, check_grid, limit
from ._parts import aside, parts_of

__all__ = ["ReversibleBlock", "ReversibleSequence", "sequences_checked"]


class _Reversible(nn.Module):
    """What a block and a sequence of blocks share: options, and running forward and backward."""

    def __init__(self, *, split_dim: int | None = None, grid: float | None = GRID, carry_state: bool | None = None,
                 reversible: bool = True, check: bool = True):
        super().__init__()
        if split_dim is not None and (isinstance(split_dim, bool) or not isinstance(split_dim, int) or split_dim < 0):
            raise MemextError(f"{type(self).__name__}: split_dim is {split_dim!r}; the number of the channel "
                              "dimension, counted from 0 (1 for [N, C, ...], 2 for [T, N, C, ...]), or None is needed")
        self.split_dim, self.grid = split_dim, check_grid(grid, type(self).__name__)
        self.carry_state, self.reversible, self.check = carry_state, bool(reversible), bool(check)
        self._checked: list[bool] = []  # a list: what runs inside other reversible modules puts attributes back

    def _blocks(self) -> list[ReversibleBlock]:
        raise NotImplementedError

    def _dim(self) -> int:
        return 1 if self.split_dim is None else self.split_dim

    def _carries(self) -> bool:
        return True if self.carry_state is None else self.carry_state

    def _coupling(self, x: Tensor) -> Coupling:
        where = type(self).__name__
        return Coupling.of(where, parts_of(self._blocks(), where), x, self._dim(), self.grid, self._carries())

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        coupling = self._coupling(x)
        parameters = coupling.parameters()
        states = [s for s in (cell.get() for cell in coupling.cells()) if isinstance(s, Tensor)]
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in (x, *parameters, *states)):
            return coupling.forward(x)
        if not self.reversible or _solving():
            return coupling.plain(x)
        coupling.keep, coupling.check = True, self.check and not self._checked
        result: dict = {}
        y, *after = Coupled.apply(coupling, result, len(parameters), x, *parameters, *states)
        for cell, s in zip(result.values(), after):
            cell.set(s)
        if coupling.real and coupling.check:
            self._checked.append(True)  # once a module is enough
        return y

    @torch.no_grad()
    def invert(self, y: Tensor) -> Tensor:
        """The input (on the grid) that gives y. Neurons start from the states that they hold now: those from before the
        call that gave y. Leaves states, statistics and random numbers as they are."""
        coupling = self._coupling(y)
        z = [half.to(coupling.dtype, copy=True).contiguous() for half in coupling.halves(y)]
        with aside(coupling.parts), fork(y.device):
            for i, part in reversed(list(enumerate(coupling.parts))):
                before = [cell.get() for cell in part.cells]
                z[i % 2].sub_(coupling.branch(part, z[1 - i % 2]))
                for cell, value in zip(part.cells, before):
                    cell.set(value)
        return torch.cat(z, coupling.dim)

    def check_invertible(self, sample: Tensor, report: list[str] | None = None) -> bool:
        """Whether the inputs of all blocks come back from the output bit for bit, for this input [*] and the neurons'
        present states: every F and G must give the same again, and no value may leave the range of the grid.

        report: a list, to which is added why not. States, statistics, gradients and random numbers stay as they are.
        Raises MemextError for an input or a block that cannot be coupled at all (channels, shapes, dtypes).
        """
        coupling = self._coupling(sample)
        coupling.keep = True
        reasons: list[str] = []
        with aside(coupling.parts), fork(sample.device):
            start = [h.clone() for h in coupling.start(sample)]
            z = [h.clone(memory_format=torch.contiguous_format) for h in coupling.halves(coupling.forward(sample))]
            problem = coupling.in_range()
            reasons += [] if problem is None else [problem]
            for i, call in reversed(list(enumerate(coupling.calls))):
                with torch.enable_grad():  # as in a backward pass
                    out = coupling.again(call, call.before, z[1 - i % 2].clone().requires_grad_()).detach()
                z[i % 2].sub_(coupling.on_grid(out))
            if not all(map(torch.equal, z, start)):
                reasons += coupling.unrepeatable(sample)[:1] or [
                    f"{coupling.where}: every F and G repeats, and the sums do not: " + (
                        "without a grid they are rounded" if self.grid is None else "not all is finite, or it is out "
                        f"of range (below {limit(self.grid, coupling.dtype):g})")]
        if report is not None:
            report += reasons
        return not reasons

    def extra_repr(self) -> str:
        return f"split_dim={self._dim()}, grid={self.grid}" + ("" if self.reversible else ", reversible=False")


def _solving() -> bool:
    """Inside a step that `unroll` rebuilds with a tolerance, neurons hold the states after the step, and solve for
    those before it in the graph of that one step."""
    tape = current()
    return tape is not None and tape._solved is not None


class ReversibleBlock(_Reversible):
    """y1 = x1 + F(x2), y2 = x2 + G(y1) over the halves of the channels.

    f, g: modules from [.., C/2, ..] to the same shape and float dtype (half precision too): convolutions, norms,
        spiking neurons. What they do must depend on their input, parameters, buffers, Torch's random numbers and the
        states of their framework's neurons only; the first training step runs each once more to see that it does.
    split_dim: of the channels; None: 1.
    grid: sums are exact on its multiples, below 2^24 * grid in float32; the input and what F and G return are rounded
        to it (straight-through gradient). The stream is float32 (float64 for float64 input), also under autocast. None:
        no rounding; the gradient is then that of other spikes, more so the deeper the network.
    carry_state: neurons keep the states that the call leaves them with, and gradients flow through them, as stepping
        through time needs it. False: they are left as they were before the call, which keeps no memory. None: True.
    reversible: False: the same values with everything kept, by Torch's own autograd, for comparison.
    check: run each F and G twice in the first training step.

    Saved for backward: the output, and states that neurons start from where they are tensors. Recomputed in backward:
    all of F and G, one after the other. Parameters get one gradient, so hooks on them run once; batch norm counts the
    step once; dropout draws the same mask. Forward hooks inside run twice: `shared_core.reversible.is_rebuilding()`.

    Raises MemextError: an odd number of channels; F or G that returns another shape or dtype, or changes its input in
    place; F or G that cannot be repeated (named); in the backward pass: a value that left the range of the grid (named
    where), an output that was changed in place; create_graph=True.
    """

    def __init__(self, f: nn.Module, g: nn.Module, **options):
        super().__init__(**options)
        for name, module in (("f", f), ("g", g)):
            if not isinstance(module, nn.Module):
                raise MemextError(f"{type(self).__name__}: {name} is {type(module).__name__}; an nn.Module is needed")
        self.f, self.g = f, g

    def _blocks(self):
        return [self]


class ReversibleSequence(_Reversible):
    """Blocks in a row, of which only the output of the last is kept: memory does not grow with their number.

    blocks: ReversibleBlocks (or one nn.ModuleList of them); the same one may stand in it twice. Their own options do
    not count here. Options, errors: those of ReversibleBlock. All gradients of the sequence's parameters come at the
    end of its backward pass, as it is one node of the graph.
    """

    def __init__(self, blocks: Iterable[ReversibleBlock], **options):
        super().__init__(**options)
        blocks = list(blocks)
        for i, block in enumerate(blocks):
            if not isinstance(block, ReversibleBlock):
                raise MemextError(f"{type(self).__name__}: block {i} is {type(block).__name__}; a ReversibleBlock(f, "
                                  "g) is needed: y1 = x1 + f(x2), y2 = x2 + g(y1)")
        if not blocks:
            raise MemextError(f"{type(self).__name__}: there are no blocks; at least one is needed")
        self.blocks = nn.ModuleList(blocks)

    def _blocks(self):
        return list(self.blocks)


@contextmanager
def sequences_checked(net: nn.Module) -> Iterator[list[str]]:
    """While this is open, every ReversibleSequence in `net` checks its input before it runs on it (check_invertible).

    Yields a list, to which is added which sequences do not get theirs back, and why.
    """
    reasons: list[str] = []

    def check(name: str, sequence: ReversibleSequence, x: Tensor) -> None:
        why: list[str] = []
        sequence.check_invertible(x, why)
        reasons.extend(f"{name}: {reason}" for reason in why)

    hooks = [m.register_forward_pre_hook(lambda m, args, name=name: check(name, m, args[0]))
             for name, m in net.named_modules() if isinstance(m, ReversibleSequence)]
    try:
        yield reasons
    finally:
        for hook in hooks:
            hook.remove()
