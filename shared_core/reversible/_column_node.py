"""The autograd node of temporal columns: forward without a graph, backward column by column and stage by stage.

Kept: the inputs, the states after the last column, a bit per state and column (`TurnedOn.parity`), and the states of
channels whose decay is too small to divide by. Not kept, but passed on: the states between the columns. Backward of
stage i in column t knows v_i[t] and, from the stage above it, v_(i+1)[t-1]; it builds the stage's graph, solves for
v_i[t-1] and hands that on. So one stage's graph is alive at a time, whatever T is.

    g_i = dL/dv_i[t]:  (dL/dbelow, dL/dabove, dL/dtheta) = vjp of stage i for g_i;   dL/dv_i[t-1] += decay * g_i
"""
from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._again import fork, random_state, set_random_state
from ..coding import is_fake
from ..errors import MemextError
from ..temporal._captured import leaves_of
from ._column_state import TurnedOn, packed, unpacked
from ._parts import Part, aside

__all__ = ["ColumnsNode", "Course", "advance", "run_columns"]


@dataclass
class Course:
    """One pass through the columns.

    stages: [T][S].  neuron: of all stages.  keep: [S][T-1] channel indices, None for all channels; [] for none.
    inputs: [T], which of the distinct input tensors a column gets.  given: number of distinct inputs.
    part: all stages with what they read.  mode: autocast as it is now.
    """

    stages: list[list[nn.Module]]
    neuron: TurnedOn
    keep: list[list[list[int] | None]]
    inputs: list[int]
    given: int
    device: torch.device
    part: Part | None = None
    mode: object = None
    training: dict[nn.Module, bool] = field(default_factory=dict)
    random: dict[tuple[int, int], tuple] = field(default_factory=dict)
    places: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        return len(self.stages)

    @property
    def depth(self) -> int:
        return len(self.stages[0])


def advance(decay: Tensor | None, v: Tensor | None, update: Tensor) -> Tensor:
    """v[t] of v[t-1]; the first column starts from rest. float16 and bfloat16 updates go into a float32 state.

    A decay that meets no state has gradient 0, not none: DistributedDataParallel waits for every parameter's.
    """
    if update.dtype in (torch.float16, torch.bfloat16):
        update = update.float()
    if v is not None:
        return per_channel(decay, v) * v + update
    learns = torch.is_grad_enabled() and decay is not None and decay.requires_grad
    return _AtRest.apply(update, decay) if learns else update


class _AtRest(torch.autograd.Function):
    """update + decay * 0, without the arithmetic."""

    @staticmethod
    def forward(ctx, update, decay):
        ctx.save_for_backward(decay)
        return update.view_as(update)

    @staticmethod
    def backward(ctx, grad):
        decay, = ctx.saved_tensors
        return grad, torch.zeros_like(decay)


def per_channel(decay: Tensor, like: Tensor) -> Tensor:
    """decay [C] against like [N, C, *]"""
    return decay.view(1, -1, *[1] * (like.dim() - 2))


def run_columns(course: Course, inputs: list[Tensor], decays: list[list[Tensor]], on_state=None) -> list[Tensor]:
    """The plain loop; under autograd it is the plain network.  on_state(t, i, v): called with every state that is about
    to be replaced, and with the random state before a stage that draws (`Course.random`)."""
    neuron, v = course.neuron, [None] * course.depth
    watch = on_state is not None and not is_fake(inputs[0])
    for t, column in enumerate(course.stages):
        for i, stage in enumerate(column):
            below = inputs[course.inputs[t]] if i == 0 else neuron.spike(v[i - 1])
            above = neuron.spike(v[i + 1]) if t and i + 1 < course.depth else None
            before = random_state(course.device) if watch else None
            update = stage(below, above)
            if v[i] is not None and update.shape != v[i].shape:
                raise MemextError(f"columns: stage {i} returned {tuple(update.shape)} in column {t}, "
                                  f"{tuple(v[i].shape)} before; a stage must return the same shape in every column")
            new = advance(decays[t][i], v[i], update)
            del update
            if watch and not all(map(torch.equal, before, random_state(course.device))):
                course.random[t, i] = before
            if on_state is not None and t:
                on_state(t - 1, i, v[i])
            v[i] = new
    return v


class ColumnsNode(torch.autograd.Function):
    """apply(course, *inputs, *decays (T x S), *parameters) -> states after the last column"""

    @staticmethod
    def forward(ctx, course: Course, *tensors):
        inputs, rest = list(tensors[:course.given]), tensors[course.given:]
        size = course.depth
        decays = [list(rest[t * size:(t + 1) * size]) for t in range(course.columns)]
        kept: list[Tensor] = []

        def keep(t: int, i: int, v: Tensor) -> None:
            course.places[t, i] = place = {}
            channels = course.keep[i][t]
            if channels is None:
                place["all"] = len(kept)
                kept.append(v)
                return
            place["bits"] = len(kept)
            kept.append(packed(course.neuron.parity(v)))
            if channels:
                place["some"] = len(kept)
                kept.append(v[:, channels])

        with course.mode():
            states = run_columns(course, inputs, decays, keep)
        taken = {id(t) for t in inputs}
        states = [v.clone() if id(v) in taken else v for v in states]  # a stage may hand its input through
        ctx.course, ctx.parts = course, (len(tensors), len(states))
        ctx.save_for_backward(*tensors, *states, *kept)
        return tuple(states)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            raise MemextError("columns: double backward (create_graph=True) was asked for; the states between the "
                              "columns are not kept. Use Columns(..., reversible=False) for it")
        try:
            saved = ctx.saved_tensors
        except RuntimeError as problem:
            if "modified by an inplace operation" not in str(problem):
                raise
            raise MemextError("columns: an output, an input or a parameter was changed in place between forward and "
                              "backward, and the earlier states are solved for from them. Change a clone instead "
                              f"({problem})") from problem
        course, (given, depth) = ctx.course, ctx.parts
        tensors, states, kept = saved[:given], saved[given:given + depth], saved[given + depth:]
        return None, *_Backward(course, tensors, kept, ctx.needs_input_grad[1:]).run(list(states), list(grads))


class _Backward:
    """One backward pass; `run` returns the gradients of the node's inputs."""

    def __init__(self, course: Course, tensors, kept, needs):
        self.course, self.kept, self.needs = course, kept, needs
        count = course.columns * course.depth
        self.inputs, self.decays = tensors[:course.given], tensors[course.given:course.given + count]
        self.grad_inputs: list[Tensor | None] = [None] * course.given
        self.grad_decays: list[Tensor] = [torch.zeros_like(d) for d in self.decays]

    def run(self, v: list[Tensor], g: list[Tensor]) -> list[Tensor | None]:
        course = self.course
        drawn = fork(course.device) if course.random else nullcontext()
        with aside([course.part], course.training) as aliases, drawn:
            self.leaves = [aliases[id(p)] for p in course.part.parameters]
            for t in reversed(range(course.columns)):
                v, g = self.column(t, v, g)
            found = [leaf.grad for leaf in self.leaves]
        return [g if need else None for g, need in zip((*self.grad_inputs, *self.grad_decays, *found), self.needs)]

    def column(self, t: int, v: list[Tensor], g: list[Tensor]) -> tuple[list, list]:
        """From the states after column t and their gradients to those before it."""
        earlier: list[Tensor | None] = [None] * len(v)
        grads: list[Tensor | None] = [None] * len(v)
        for i in reversed(range(len(v))):
            below = self.inputs[self.course.inputs[t]] if i == 0 else v[i - 1]
            above = earlier[i + 1] if t and i + 1 < len(v) else None
            update, of_below, of_above = self.stage(t, i, below, above, g[i])
            if i:
                g[i - 1] = g[i - 1] + of_below
            elif of_below is not None:
                self.add_to_input(self.course.inputs[t], of_below)
            if above is not None and of_above is not None:
                grads[i + 1] = grads[i + 1] + of_above
            if t:
                decay = self.decays[t * len(v) + i]
                earlier[i] = self.before(t - 1, i, v[i], update, decay)
                dims = [d for d in range(v[i].dim()) if d != 1]
                self.grad_decays[t * len(v) + i] = (g[i] * earlier[i]).sum(dims).view_as(decay)
                grads[i] = per_channel(decay, v[i]) * g[i]
            v[i] = g[i] = update = None
        return earlier, grads

    def stage(self, t: int, i: int, below: Tensor, above: Tensor | None, g: Tensor):
        """(update, gradient of below, gradient of above); the stage's graph is gone afterwards."""
        course, spike = self.course, self.course.neuron.spike
        learns = i > 0 or self.needs[course.inputs[t]]
        below = below.detach().requires_grad_(learns)
        above = None if above is None else above.detach().requires_grad_()
        if (t, i) in course.random:
            set_random_state(course.device, course.random[t, i])
        with torch.enable_grad(), course.mode():
            out = course.stages[t][i](below if i == 0 else spike(below), None if above is None else spike(above))
        into = [leaf for leaf in (below, above) if leaf is not None and leaf.requires_grad] + self.leaves
        if out.requires_grad and into:
            self.check(out, into, i)
            torch.autograd.backward(out, g.to(out.dtype), inputs=into)
        update = out.detach()
        of_below = below.grad if learns else None
        if learns and of_below is None:
            of_below = torch.zeros_like(below)
        return update, of_below, None if above is None else above.grad

    def before(self, t: int, i: int, after: Tensor, update: Tensor, decay: Tensor) -> Tensor:
        """v_i[t] of v_i[t+1]"""
        place = self.course.places[t, i]
        if "all" in place:
            return self.kept[place["all"]]
        v = (after - update).div_(per_channel(decay, after))
        v = self.course.neuron.settle(v, unpacked(self.kept[place["bits"]], v))
        if "some" in place:
            v[:, self.course.keep[i][t]] = self.kept[place["some"]]
        return v

    def add_to_input(self, which: int, grad: Tensor) -> None:
        have = self.grad_inputs[which]
        self.grad_inputs[which] = grad if have is None else have.add_(grad)

    def check(self, out: Tensor, into: list[Tensor], i: int) -> None:
        """No gradient ends in a tensor that was not found."""
        if leaves_of([out]) - {id(leaf) for leaf in into}:
            raise MemextError(f"columns: stage {i} uses a tensor that needs a gradient and is no parameter of the "
                              "stage; make it one, or pass reversible=False")
