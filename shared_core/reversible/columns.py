"""Networks that are reversible in time (T-RevSNN): T columns of S stages, of which only the last neuron of a stage
carries a state from column to column.

    v_i[t] = decay_i[t] * v_i[t-1] + stage_i,t(spikes of v_(i-1)[t], spikes of v_(i+1)[t-1])     T-RevSNN Eq. 10

A column is a time step, and has weights of its own. Training keeps one stage's graph at a time: the states of earlier
columns are solved for (Eq. 11). docs/design/t_revsnn.md says what is kept, and why that is exact.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .._again import fork
from ..coding import is_fake
from ..errors import MemextError
from ..surrogate import Surrogate
from ..temporal._hosts import imported
from ..temporal._program import unchanged_mode
from ._column_node import ColumnsNode, Course, advance, run_columns
from ._column_state import TurnedOn, kept_channels, smoothness, window
from ._parts import Part, aside, part_of

__all__ = ["Columns", "window"]

CLAMP = 1e-3  # T-RevSNN's published code: |decay| is at least this
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # of a state, relative to the size of states


class Columns(nn.Module):
    """T columns of S stages as one differentiable function of their inputs; see the head of this file.

    stages: [T][S] modules. stage(below, above) -> update [N, C_i, *]; below: the column's input for the first stage,
        else spikes of the stage before it (same column); above: spikes of the next stage (column before), None in the
        first column and in the last stage. A stage must do the same when it is run again: neurons inside it carry no
        state. Modules may be shared between columns.
    channels: [S], C_i.
    decay: the value all decays start from. They are parameters, [C_i] per stage and column.
    clamp: where |decay| is smaller, this is used, with its sign; the gradient goes to the parameter as it is.
    v_threshold, surrogate: of the neurons between the stages; spikes are 0 or 1, without reset.
    tolerance: error allowed in a state that is solved for, relative to the size of states; where dividing by the
        decays would exceed it, a channel's state is kept instead. None: 1e-5 in float32, 1e-10 in float64. math.inf:
        always divide, as published.  0: keep all states.
    reversible: False runs the same network under plain autograd.

    Saved for backward: inputs, last states, 1/8 byte per state and column, the kept states. States are float32 where
    stages return float16 or bfloat16. Costs: every stage is run twice forward. Helps little when: T is 1.
    Raises MemextError: stages that do not form a T x S table, numbers out of range; see `forward` for the rest.
    """

    def __init__(self, stages: Sequence[Sequence[nn.Module]], channels: Sequence[int], *, decay: float = 0.5,
                 clamp: float = CLAMP, v_threshold: float = 0.5, surrogate: Surrogate | None = None,
                 tolerance: float | None = None, reversible: bool = True):
        super().__init__()
        sizes = {len(column) for column in stages}
        if len(sizes) != 1 or sizes == {0}:
            raise MemextError(f"Columns: the columns have {[len(c) for c in stages]} stages; every column needs the "
                              "same number, at least one")
        if {len(channels)} != sizes:
            raise MemextError(f"Columns: channels={tuple(channels)} for {sizes.pop()} stages; one number per stage")
        if not 0 < clamp < 1:
            raise MemextError(f"Columns: clamp={clamp}; allowed: between 0 and 1. Decays are divided by")
        if tolerance is not None and not tolerance >= 0:
            raise MemextError(f"Columns: tolerance={tolerance}; allowed: None, or a number from 0 to math.inf")
        self.stages = nn.ModuleList(nn.ModuleList(column) for column in stages)
        self.decays = nn.ParameterList(nn.Parameter(torch.full((c,), float(decay))) for _ in stages for c in channels)
        self.channels, self.decay = tuple(channels), float(decay)
        self.clamp, self.tolerance, self.reversible = clamp, tolerance, reversible
        self.neuron = TurnedOn(v_threshold, window() if surrogate is None else surrogate)

    def extra_repr(self) -> str:
        return (f"T={len(self.stages)}, channels={self.channels}, v_threshold={self.neuron.v_threshold}, "
                f"surrogate={self.neuron.surrogate.name}, tolerance={self.tolerance}, reversible={self.reversible}")

    # ---- running ----

    def forward(self, inputs: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """The states of all stages after the last column, [N, C_i, *] each.

        inputs: T tensors, or [T, *]. The same tensor may be given to several columns.
        Raises MemextError: not T inputs; shapes that differ between columns; in backward: a change in place of what
        was saved, double backward, a tensor that learns and is no parameter.
        """
        inputs = self._inputs(inputs)
        if not torch.is_grad_enabled() or not self.reversible:
            return self.plain(inputs)
        return self._reversible(inputs)

    def _reversible(self, inputs: list[Tensor]) -> list[Tensor]:
        distinct = list({id(x): x for x in inputs}.values())
        order = {id(x): n for n, x in enumerate(distinct)}
        course, decays = self._course([order[id(x)] for x in inputs], inputs[0]), self.clamped()
        return list(ColumnsNode.apply(course, *distinct, *(d for row in decays for d in row), *course.part.parameters))

    def plain(self, inputs: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """As `forward`, as a plain loop under Torch's own autograd."""
        inputs = self._inputs(inputs)
        course = Course([list(c) for c in self.stages], self.neuron, [], list(range(len(inputs))), len(inputs),
                        inputs[0].device)
        return run_columns(course, inputs, self.clamped())

    def step(self, t: int, x: Tensor, states: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Column t alone, for input that arrives step by step: the states after it, of those before it (None: rest)."""
        if not 0 <= t < len(self.stages) or (t == 0) != (states is None):
            raise MemextError(f"Columns.step: column t={t} with{'out' if states is None else ''} states; allowed: "
                              f"column 0 without, then 1 to {len(self.stages) - 1} with those of the column before")
        v, decays = [None] * len(self.channels) if states is None else list(states), self.clamped()[t]
        for i, stage in enumerate(self.stages[t]):
            above = self.neuron.spike(v[i + 1]) if t and i + 1 < len(v) else None
            v[i] = advance(decays[i], v[i], stage(x if i == 0 else self.neuron.spike(v[i - 1]), above))
        return v

    def clamped(self) -> list[list[Tensor]]:
        """The decays in use, [T][S] of [C_i], at least `clamp` from 0; gradients pass as if they were not clamped."""
        rows = []
        for p in self.decays:
            with torch.no_grad():
                sign = torch.where(p < 0, -1.0, 1.0).to(p.dtype)
                short = sign * p.abs().clamp_min(self.clamp) - p
            rows.append(p + short)
        size = len(self.channels)
        return [rows[at:at + size] for at in range(0, len(rows), size)]

    # ---- what is kept ----

    def plan(self, dtype: torch.dtype = torch.float32) -> list[list[list[int]]]:
        """[S][T-1]: the channels whose state after that column is kept, with the decays as they are now."""
        tolerance = TOLERANCE[dtype] if self.tolerance is None else self.tolerance
        allowed = tolerance / smoothness(self.neuron.surrogate)
        with torch.no_grad():
            decays = torch.cat([d for row in self.clamped() for d in row]).cpu()  # one wait for the device
        with unset_fake_temporarily():
            if is_fake(decays):  # the planner's tensors have no values
                decays = torch.full(decays.shape, max(abs(self.decay), self.clamp))
            by_stage = decays.view(len(self.stages), -1).split(self.channels, dim=1)
            return [kept_channels(found, allowed, torch.finfo(dtype).eps) for found in by_stage]

    def report(self, dtype: torch.dtype = torch.float32) -> dict:
        """Which share of the states between the columns is kept, in all and by stage; the others are solved for."""
        plan, between = self.plan(dtype), len(self.stages) - 1
        kept = [sum(map(len, stage)) / max(1, between * c) for stage, c in zip(plan, self.channels)]
        total = sum(len(c) for stage in plan for c in stage) / max(1, between * sum(self.channels))
        least = min(float(d.detach().abs().min()) for row in self.clamped() for d in row)
        return {"columns": len(self.stages), "kept share": total, "kept share by stage": kept,
                "smallest decay": least, "bits per state": 1}

    def check_invertible(self, inputs: Sequence[Tensor] | Tensor) -> bool:
        """Do one pass and its gradients equal those of plain autograd? Runs all stages on `inputs`, and leaves nothing
        behind: no gradients, no moved running statistics, no random numbers drawn.

        Equal: norm-relative within 1e-4 for each tensor (1e-9 in float64), ten times what is allowed in a state.
        False: a stage does something else when it is run again, or decays are too small for the tolerance given.
        """
        inputs = [x.detach() for x in self._inputs(inputs)]
        found = []
        for run in (self.plain, self._reversible):
            with fork(inputs[0].device):
                found.append(self._gradients(run, inputs))
        limit = 10 * TOLERANCE[found[0][0].dtype]
        return all(_apart(a, b) <= limit for a, b in zip(*found))

    def _gradients(self, run, inputs: list[Tensor]) -> list[Tensor]:
        """Last states, then gradients of inputs and parameters for a fixed random loss; leaves nothing behind."""
        leaves = {id(x): x.clone().requires_grad_() for x in inputs}
        part = self._part(self)
        with torch.enable_grad(), aside([part]) as aliases:
            parameters = [aliases[id(p)] for p in part.parameters]
            states = run([leaves[id(x)] for x in inputs])
            generator = torch.Generator().manual_seed(0)
            weights = [torch.randn(v.shape, generator=generator).to(v) for v in states]
            loss = sum((v * w).sum() for v, w in zip(states, weights))
            into = [*leaves.values(), *parameters]
            grads = torch.autograd.grad(loss, into, allow_unused=True)
        return [v.detach() for v in states] + [torch.zeros_like(p) if g is None else g for g, p in zip(grads, into)]

    # ---- checks ----

    def _inputs(self, inputs) -> list[Tensor]:
        found = list(inputs.unbind(0)) if isinstance(inputs, Tensor) else list(inputs)
        if len(found) != len(self.stages):
            raise MemextError(f"Columns: {len(found)} inputs for {len(self.stages)} columns; give each column one "
                              "(the same tensor may be repeated)")
        if not all(isinstance(x, Tensor) and x.dim() >= 2 for x in found):
            raise MemextError("Columns: inputs must be tensors [N, C, *], one for each column")
        return found

    def _course(self, order: list[int], x: Tensor) -> Course:
        dtype = torch.float64 if x.dtype == torch.float64 or self.decays[0].dtype == torch.float64 else torch.float32
        keep = [[None if len(kept) == c else kept for kept in stage]
                for stage, c in zip(self.plan(dtype), self.channels)]
        part = self._part(self.stages)
        return Course([list(c) for c in self.stages], self.neuron, keep, order, max(order) + 1, x.device, part,
                      unchanged_mode(x.device), {m: m.training for m in part.modules})

    @staticmethod
    def _part(module: nn.Module) -> Part:
        part = part_of(module, "Columns", imported())
        if part.cells:
            names = sorted({type(cell.module).__name__ for cell in part.cells})
            raise MemextError(f"Columns: a stage holds {', '.join(names)}, which carries a state from call to call; "
                              "only the neurons between stages do. Use a surrogate's spike function inside stages, or "
                              "reversible=False")
        return part


def _apart(a: Tensor, b: Tensor) -> float:
    """Norm-relative distance."""
    return float((a - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))
