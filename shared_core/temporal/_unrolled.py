"""The autograd node of an unrolled module: forward without a graph, backward step by step.

Kept: states at some steps (anchors), the bits of the spikes, the state of the random numbers where a step draws any,
and nothing else. Backward goes from anchor to anchor: the states between two of them are found by running forward
again, then each step is rebuilt with a graph of its own, last step first, and the gradient of the state it started from
is handed to the step before.

    c = dL/d state[t]:   (c, dtheta, dx[t]) = vjp of step t at (state[t-1], theta, x[t]), for (dL/d out[t], c)
"""
from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from .._again import fork, random_state, set_random_state
from .._tape import Solved, Tape
from ..errors import MemextError
from . import _division
from ._captured import leaves_of
from ._program import Program, leaf, unchanged_mode

__all__ = ["Course", "Unrolled", "forward"]


@dataclass
class Course:
    """How one sequence goes through one program.

    x: [T, *], or [*] with static, or None with a function `inputs`.  explicit: number of states the step takes itself.
    width: steps done at once.  every: units (of `width` steps) between two anchors; None: in chunks that grow shorter
    (`shrinking`), one state fewer to find again for each that is kept.
    whole: rebuild from anchor to anchor in one graph (checkpoint), not step by step.
    carry: pass the gradient of the state on (False: online learning).  chosen: steps that get a backward; None: all.
    tolerance: solve for earlier states where this bounds the error; None: never.  most: `every` as the user set it.
    said: what was decided, in words.
    """

    program: Program
    steps: int
    static: bool
    inputs: object
    explicit: int
    device: torch.device
    width: int = 1
    every: int | None = 1
    whole: bool = False
    carry: bool = True
    taped: bool = False
    chosen: frozenset[int] | None = None
    skip: float = 0.0
    tolerance: float | None = None
    most: int | None = None
    merged: object = nullcontext
    anchors: dict[int, list] = field(default_factory=dict)
    tape: Tape = field(default_factory=Tape)
    random: dict[int, tuple] = field(default_factory=dict)
    mode: object = None
    final: list = field(default_factory=list)
    solves: bool = False
    said: list[str] = field(default_factory=list)
    warned: bool = False

    @property
    def units(self) -> int:
        return math.ceil(self.steps / self.width)

    def range(self, unit: int) -> slice:
        return slice(unit * self.width, min((unit + 1) * self.width, self.steps))

    def shrinking(self) -> set[int]:
        """Starts of chunks of C, C-1, ..., 1 units, C(C+1)/2 >= units.

        Backward goes through the last chunk first, and lets go of its anchor: anchors and states found again are then
        never more than C + 1 together, where equal chunks need 2 sqrt(units).
        """
        length = math.ceil((math.sqrt(8 * self.units + 1) - 1) / 2)
        return {start for start in accumulate(range(length, 0, -1), initial=0) if start < self.units}

    def input(self, x: Tensor | None, unit: int) -> Tensor:
        """[*] of one step, or [k N, *] of k steps."""
        at = self.range(unit)
        if self.inputs is not None:
            return self.inputs(at.start)
        if self.width == 1:
            return x if self.static else x[at.start]
        part = x.expand(at.stop - at.start, *x.shape) if self.static else x[at]
        return part.flatten(0, 1)

    def of_unit(self, t: Tensor, unit: int) -> Tensor:
        """Of an output or its gradient [T, *], what belongs to a unit, shaped as the unit returns it."""
        at = self.range(unit)
        return t[at.start] if self.width == 1 else t[at].flatten(0, 1)

    def run(self, x: Tensor | None, states: Sequence, unit: int):
        with self.merged(self.range(unit).stop - self.range(unit).start):
            return self.program.run(self.input(x, unit), states, self.explicit)


def forward(course: Course, x: Tensor | None, states: list) -> tuple[list[Tensor], list]:
    """Outputs [T, *] and final states, without a graph; what backward needs is left in the course."""
    program, outputs, earlier = course.program, None, states
    course.mode = unchanged_mode(course.device)
    activity: list = []
    drawn = random_state(course.device)
    kept = course.shrinking() if course.every is None else ()
    with torch.no_grad(), course.mode(), program.ours() if course.taped else nullcontext():
        for unit in range(course.units):
            if unit in kept if course.every is None else unit % course.every == 0:
                course.anchors[unit] = states
            with course.tape.recording() if course.taped else nullcontext(), \
                    _activity(course, activity):
                out, states = course.run(x, states, unit)
            now = random_state(course.device)
            if not all(torch.equal(a, b) for a, b in zip(drawn, now)):
                course.random[unit], drawn = drawn, now
            outputs = _put(outputs, out, course, unit)
            if unit == 1 and course.tolerance is not None:
                _try_division(course, earlier, states)
            earlier = states
    if course.skip:
        course.chosen = _busiest(activity, course.skip)
    course.tape.calls, course.final = [], states if course.solves else []
    return outputs, states


def _try_division(course: Course, before: list, after: list) -> None:
    """After the second step, which shows whose states these are."""
    why = _division.why_not(course.tape, before, after)
    every = 0 if why else _division.steps_between(course.tape, course.tolerance) // course.width
    every = min(every, course.most or every)
    if every > 1:
        course.solves, course.every = True, every
        course.said.append(f"division: states are solved for, one kept every {every * course.width} steps")
    else:
        course.said.append(f"replay: {why or f'division within tolerance={course.tolerance:g} would be of no use'}")


def _put(outputs, out: list[Tensor], course: Course, unit: int) -> list[Tensor]:
    at = course.range(unit)
    k = at.stop - at.start
    if outputs is None:
        shapes = [o.shape if course.width == 1 else (o.shape[0] // k, *o.shape[1:]) for o in out]
        outputs = [o.new_empty((course.steps, *shape)) for o, shape in zip(out, shapes)]
    for whole, o in zip(outputs, out):
        part = whole[at]
        if o.numel() != part.numel():
            raise MemextError(f"unroll: step {at.start} returned shape {tuple(o.shape)}, step 0 "
                              f"{tuple(whole.shape[1:])}; every step must return the same shapes")
        part.copy_(o.view(part.shape))
    return outputs


class Unrolled(torch.autograd.Function):
    """apply(course, finals, x, number of states, *states that are tensors, *parameters) -> outputs, final states."""

    @staticmethod
    def forward(ctx, course: Course, start: list, result: dict, x, *tensors):
        ctx.course, ctx.start = course, start
        outputs, final = forward(course, x, start)
        ctx.save_for_backward(x, *tensors)
        ctx.set_materialize_grads(False)
        ctx.outputs = len(outputs)
        # A state that a step hands through (a dropout mask) is an input; as an output it must be a tensor of its own.
        # And the neuron holds its last state, too: what it holds must not become part of the graph.
        given = {id(t) for t in tensors}
        final = [(s.clone() if id(s) in given else s.detach()) if isinstance(s, Tensor) else s for s in final]
        ctx.carried = [i for i, s in enumerate(final) if isinstance(s, Tensor) and s.is_floating_point()]
        result["final"], result["carried"] = final, ctx.carried
        dead = [o for o in outputs if not o.is_floating_point()]
        ctx.mark_non_differentiable(*dead)
        return *outputs, *(final[i] for i in ctx.carried)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            raise MemextError("unroll: double backward (create_graph=True) was asked for; the graph of the past is not "
                              "kept here. Use method='store' for it")
        course, program = ctx.course, ctx.course.program
        x, *_ = ctx.saved_tensors  # raises if a parameter was changed in place since
        grad_out = grads[:ctx.outputs]
        carry: list[Tensor | None] = [None] * len(ctx.start)
        for i, g in zip(ctx.carried, grads[ctx.outputs:]):
            carry[i] = g
        needs = ctx.needs_input_grad[3:]
        grad_x = torch.zeros_like(x) if needs[0] else None
        with ExitStack() as stack:
            stack.enter_context(course.mode())
            stack.enter_context(fork(course.device))
            if course.taped:
                stack.enter_context(program.ours())
            aliases = stack.enter_context(program.aside())
            back = _Backward(course, aliases, x, grad_x, grad_out)
            for units in _chunks(course):
                carry = back.chunk(units, carry)
        tensors = [carry[i] for i, s in enumerate(ctx.start) if isinstance(s, Tensor)]
        found = [*tensors, *(alias.grad for alias in aliases)]
        return None, None, None, grad_x, *(g if need else None for g, need in zip(found, needs[1:]))


def _chunks(course: Course) -> Iterator[list[int]]:
    """Units from anchor to anchor, the last chunk first."""
    end = course.units
    for start in sorted(course.anchors, reverse=True):
        yield list(range(start, end))
        end = start


class _Backward:
    """One backward pass."""

    def __init__(self, course: Course, aliases, x, grad_x, grad_out):
        self.course, self.aliases, self.x, self.grad_x, self.grad_out = course, aliases, x, grad_x, grad_out
        self.checked = False
        self.again_later = torch._C._autograd._get_current_graph_task_keep_graph()  # retain_graph=True

    def anchor(self, unit: int) -> list:
        """The states kept before this unit, for the last time in this pass."""
        return self.course.anchors[unit] if self.again_later else self.course.anchors.pop(unit)

    def chunk(self, units: list[int], carry: list) -> list:
        """The gradient of the state before these units, from that after them."""
        if self.course.solves and units[-1] > 0:
            return self.divide(units, carry)
        states = [self.anchor(units[0])]
        if self.course.whole:
            return self.through(units, states[0], carry)
        with torch.no_grad():
            for unit in units[:-1]:
                states.append([_kept(s) for s in self.again(unit, states[-1], self.x)[1]])
        for unit in reversed(units):
            carry = self.through([unit], states.pop(), carry)
        return carry

    def divide(self, units: list[int], carry: list) -> list:
        """As chunk, from the states after the last unit back."""
        course, end = self.course, units[-1] + 1
        anchor, after = course.anchors[units[0]], self.anchor(end) if end in course.anchors else course.final
        for unit in reversed(units):
            if unit == 0:
                return self.through([0], anchor, carry)
            known = anchor if unit == units[0] else None
            carry, after = self.through([unit], after, carry, known)
        return carry

    def again(self, unit: int, states: list, x, solved: Solved | None = None):
        course, mode = self.course, nullcontext()
        if unit in course.random:
            set_random_state(course.device, course.random[unit])
        if course.taped:
            mode = course.tape.giving(unit) if solved is None else course.tape.solving(unit, solved)
        with mode:
            return course.run(x, states, unit)

    def solved(self, after: list, known: list | None) -> Solved | None:
        """For states given as those after a step. known: those before it, where they were kept."""
        if known is None:
            return Solved()
        return Solved({id(s): k for s, k in zip(after, known) if isinstance(k, Tensor)})

    def solution(self, unit: int, states: list, leaves: list, solved: Solved) -> tuple[list, list]:
        """(gradients of the states before the step, these states)"""
        course = self.course
        if any(s.grad is not None for s in leaves if isinstance(s, Tensor) and s.is_leaf):
            raise MemextError(f"unroll: step {unit} reads a neuron's state outside of the neuron, and division has "
                              "only the state after the step; use tolerance=None (replay)")
        limit = 10 * course.tolerance
        if solved.error > limit and not course.warned:
            course.warned = True
            warnings.warn(f"unroll: a state that was solved for is {solved.error:.1e} from the one kept at step "
                          f"{unit}; more than {limit:.1e} puts the gradient in doubt: use tolerance=None (replay)",
                          RuntimeWarning, stacklevel=2)
        before = [solved.before.get(id(s), p) for s, p in zip(leaves, states)]
        return [b.grad if isinstance(b, Tensor) and b.is_leaf else None for b in before], [_kept(b) for b in before]

    def through(self, units: list[int], states: list, carry: list, *known):
        """Rebuilds these units in one graph, and runs it backward.

        states: those before the first unit; returns their gradients. With `known` (see `solved`), one unit from the
        states after it; returns (gradients of the states before it, these states).
        """
        course, solving = self.course, bool(known)
        leaves = now = [leaf(s) for s in states] if course.carry else states
        solved = self.solved(leaves, known[0]) if solving else None
        roots, gradients, inputs = [], [], []
        with torch.enable_grad():
            for unit in units:
                if course.chosen is not None and unit not in course.chosen:
                    now = self.over(unit, now)
                    continue
                x = self.x
                if self.grad_x is not None:
                    x = self.x.detach().requires_grad_() if course.static else _OneRow(self.x, course.range(unit))
                    inputs.append(x)
                out, now = self.again(unit, now, x, solved)
                for o, g in zip(out, self.grad_out):
                    if g is not None and o.requires_grad:
                        roots.append(o)
                        gradients.append(course.of_unit(g, unit))
            for s, g in zip(now, carry):
                if g is not None and isinstance(s, Tensor) and s.requires_grad:
                    roots.append(s)
                    gradients.append(g)
            into = [s for s in leaves if isinstance(s, Tensor) and s.requires_grad] if course.carry else []
            into += list(solved.before.values()) if solving else []
            into += [x.rows if isinstance(x, _OneRow) else x for x in inputs] + self.aliases
            if roots and into:
                self.check(roots, into)
                torch.autograd.backward(roots, gradients, inputs=into)
        self.add_to_x(inputs)
        if solving:
            return self.solution(units[0], states, leaves, solved)
        if not course.carry:
            return [None] * len(states)
        return [s.grad if isinstance(s, Tensor) and s.is_leaf else None for s in leaves]

    def add_to_x(self, inputs: list) -> None:
        for x in inputs:
            if isinstance(x, _OneRow):
                if x.rows.grad is not None:
                    self.grad_x[x.at].copy_(x.rows.grad)
            elif x.grad is not None:
                self.grad_x.add_(x.grad)

    def over(self, unit: int, states: list) -> list:
        """A step without a backward: its state moves on, and the gradient of the state passes straight over it."""
        with torch.no_grad():
            _, after = self.again(unit, [_kept(s) for s in states], self.x)
        passed = []
        for s, new in zip(states, after):
            fits = isinstance(s, Tensor) and isinstance(new, Tensor) and s.shape == new.shape and s.requires_grad
            passed.append(s + (new - s).detach() if fits and self.course.carry else new)
        return passed

    def check(self, roots: list, into: list) -> None:
        """Once per backward pass: no gradient ends in a tensor that was not found."""
        if self.checked:
            return
        self.checked = True
        if leaves_of(roots) - {id(t) for t in into}:
            raise MemextError("unroll: the step uses a tensor that needs a gradient and is held where it was not found "
                              "(by an object of an unknown kind, or in a set); make it a parameter of the module, or a "
                              "variable of the function that defines the step")


class _OneRow:
    """x_seq of which some rows learn, read as Course.input reads it."""

    def __init__(self, x: Tensor, at: slice):
        self.at, self.shape = at, x.shape
        self.rows = x[at].detach().requires_grad_()

    def __getitem__(self, index):
        return self.rows if isinstance(index, slice) else self.rows[index - self.at.start]


def _kept(state):
    return state.detach() if isinstance(state, Tensor) else state


def _activity(course: Course, sums: list):
    """Hooks that add up what the neurons send in this step; nothing without `skip`."""
    if not course.skip:
        return nullcontext()
    stack = ExitStack()
    sums.append(0.0)

    def count(module, args, out):
        sums[-1] = sums[-1] + (out[0] if isinstance(out, tuple) else out).detach().sum()

    for m in course.program.modules:
        if any(host.framework.is_neuron(m) for host in course.program.hosts):
            stack.callback(m.register_forward_hook(count).remove)
    return stack


def _busiest(activity: list, skip: float) -> frozenset[int]:
    """All steps but the share `skip` with the least activity; of equal ones, the later ones stay."""
    order = sorted(range(len(activity)), key=lambda t: (float(activity[t]), t))
    return frozenset(order[int(skip * len(order)):])
