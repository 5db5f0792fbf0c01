"""unroll: a module through time, with or without its past kept."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._again import fork
from ..errors import MemextError
from ._merged import merging, why_not
from ._program import Program
from ._unrolled import Course, Unrolled, forward

__all__ = ["METHODS", "unroll"]

METHODS = ("store", "checkpoint", "reverse", "online")
FINAL = ("detached", "attached")
AT_ONCE = 8  # steps, for "auto" and "fast"


@torch.compiler.disable  # a backward pass of our own over many steps: nothing in here for a compiler to see
def unroll(step_module: Callable, x_seq, method: str = "reverse", *, num_steps: int | None = None, state=None,
           final_state: str = "detached", tolerance: float | None = None, steps_at_once: int | str = 1,
           every: int | None = None, skip: float = 0.0, steps: Sequence[int] | None = None,
           report: list[str] | None = None):
    """Calls a module once a step, and gives the gradient of all its outputs, without keeping the graph of all steps.

        out = unroll(net, x_seq)                                 # spiking neurons hold their states
        def step(x, mem1, mem2):                                 # or the step takes and returns them
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            return (spk2, mem2), (mem1, mem2)
        (spk_rec, mem_rec), (mem1, mem2) = unroll(step, x_seq, state=(mem1, mem2))

    step_module: a Module, or a function of x [*] (and states). Its parameters are found, also through closures.
    x_seq: [T, *]; or one [*] for every step, with num_steps; or a function t -> x, with num_steps.
    method: "store": as a plain loop. "checkpoint": states kept at some steps, the steps between two of them run again
        with their graph. "reverse": so, too, but one step has a graph at a time; spikes are kept as bits, and a rebuilt
        neuron is never asked again whether it fires. "online": reverse, without the gradient of the carried state
        (SLTT, Meng et al. 2023, Eq. 12 to 14, if the loss is the mean of a loss per step).
    num_steps: T, where x_seq does not say it.
    state: states that the step takes after x and returns, as a tuple; tensors, or nested tuples and dicts of them.
    final_state: states that modules hold are left "detached", or "attached": with their gradient to this sequence.
    tolerance: with "reverse": solve for earlier states by division, which saves running the steps between two kept
        states once more, where the relative error of gradients stays about within it (1e-5, say). None: never; states
        are then found by running forward again, bit for bit.
    steps_at_once: 1; k: k steps side by side, for a chain of layers (a Sequential, or a module that says
        steps_at_once = True); "auto": 8 if one probe fires the same spikes, else 1; "fast": 8 where it can be done.
        Other shapes round otherwise, so "the same" is then plain BPTT in the same chunks.
    every: steps between two kept states, at most; None: sqrt(T) for "checkpoint", ever fewer towards the end for
        "reverse" and "online" (about sqrt(2 T) states in all), or what tolerance allows.
    skip: with "checkpoint": the share of steps, those with the fewest spikes, that get no backward.
    steps: with "online": the steps that get a backward (SLTT-K); None: all.
    report: a list, to which sentences are added that say how it was done.

    Returns every output of the step stacked, [T, *], in the structure in which the step returns them; with state=,
    (outputs, final state), both differentiable. Parameters get one gradient (their hooks run once), so do x_seq and
    the first states. Batch norm, dropout and random inputs do in the backward pass what they did in the forward pass.
    Raises MemextError: an unknown method or option; T = 0; steps that return other shapes; a step that returns no
        tensors; a tensor that learns and cannot be found; steps that cannot be merged; create_graph=True.
    """
    x, inputs, count, static = _sequence(x_seq, num_steps)
    _check(method, final_state, tolerance, steps_at_once, every, skip, steps, count)
    program = Program(step_module, inputs)
    explicit, start = _start(program, state)
    device = next((t.device for t in (x, *program.parameters) if t is not None), torch.device("cpu"))
    if method == "store":
        return _stored(program, x, inputs, count, static, start, explicit, state is not None, final_state)
    course = Course(program, count, static, inputs, explicit, device, whole=method == "checkpoint",
                    carry=method != "online", taped=method != "checkpoint", skip=skip, tolerance=tolerance,
                    chosen=None if steps is None else frozenset(steps))
    _widen(course, steps_at_once, x, start)
    course.every = course.most = None if every is None else max(1, every // course.width)
    if every is None and course.whole:
        course.every = math.ceil(math.sqrt(course.units))
    kept = len(course.shrinking()) if course.every is None else math.ceil(course.units / course.every)
    course.said.append(f"{method}: {course.units} times {course.width} steps, states kept at {kept} of them"
                       if tolerance is None else f"{method} within tolerance={tolerance:g}")
    tensors = [s for s in start if isinstance(s, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors, *program.parameters) if t is not None):
        result: dict = {}
        flat = Unrolled.apply(course, start, result, x, *tensors, *program.parameters)
        final = list(result["final"])
        outputs = flat[:len(flat) - len(result["carried"])]
        for i, s in zip(result["carried"], flat[len(outputs):]):
            final[i] = s
    else:
        course.taped, course.every, course.tolerance = False, course.units, None
        outputs, final = forward(course, x, start)
    if report is not None:
        report += course.said
    return _result(program, list(outputs), final, explicit, state is not None, final_state)


def _result(program: Program, outputs, final, explicit: int, given: bool, final_state: str):
    attached = final_state == "attached"
    for cell, value in zip(program.cells, final[explicit:]):
        cell.set(value if attached or not isinstance(value, Tensor) else value.detach())
    out = tree_unflatten(outputs, program.out_spec)
    return (out, tree_unflatten(final[:explicit], program.state_spec)) if given else out


def _stored(program: Program, x, inputs, count: int, static: bool, start, explicit: int, given: bool,
            final_state: str):
    rows, states = [], start
    for t in range(count):
        out, states = program.run(inputs(t) if inputs is not None else x if static else x[t], states, explicit)
        rows.append(out)
    return _result(program, [torch.stack(parts) for parts in zip(*rows)], states, explicit, given, final_state)


def _sequence(x_seq, num_steps):
    """(tensor or None, function or None, T, whether the tensor is every step's)"""
    if num_steps is not None and not (_whole(num_steps) and num_steps >= 1):
        raise MemextError(f"unroll: num_steps is {num_steps!r}; a number of steps, at least 1, is needed")
    if isinstance(x_seq, Tensor):
        if num_steps is not None:
            return x_seq, None, num_steps, True
        if x_seq.dim() == 0 or x_seq.shape[0] == 0:
            raise MemextError(f"unroll: x_seq has shape {tuple(x_seq.shape)}; [T, *] with T >= 1 is needed, time first "
                              "(or one step's input, and num_steps=T)")
        return x_seq, None, x_seq.shape[0], False
    if not callable(x_seq):
        raise MemextError(f"unroll: x_seq is {type(x_seq).__name__}; a tensor [T, *], or a function t -> tensor with "
                          "num_steps=T, is needed")
    if num_steps is None:
        raise MemextError("unroll: x_seq is a function, which does not say how many steps there are; pass num_steps=T")
    return None, x_seq, num_steps, False


def _check(method, final_state, tolerance, steps_at_once, every, skip, steps, count) -> None:
    if method not in METHODS:
        raise MemextError(f"unroll: method is {method!r}; allowed: {', '.join(METHODS)}")
    if final_state not in FINAL:
        raise MemextError(f"unroll: final_state is {final_state!r}; allowed: {', '.join(FINAL)}")
    if tolerance is not None and (method != "reverse" or not _number(tolerance) or not 0 < tolerance < 1):
        raise MemextError(f"unroll: tolerance is {tolerance!r} with method={method!r}; a number between 0 and 1 is "
                          "allowed, with method='reverse'")
    if tolerance is not None and isinstance(steps_at_once, int) and steps_at_once > 32:
        raise MemextError(f"unroll: steps_at_once is {steps_at_once} with tolerance={tolerance!r}; at most 32 is "
                          "allowed then")
    if steps_at_once not in ("auto", "fast") and not (_whole(steps_at_once) and steps_at_once >= 1):
        raise MemextError(f"unroll: steps_at_once is {steps_at_once!r}; a number, 'auto' or 'fast' is needed")
    if steps_at_once != 1 and method not in ("reverse", "checkpoint"):
        raise MemextError(f"unroll: steps_at_once is {steps_at_once!r}, and method={method!r} goes step by "
                          "step; use 'reverse' or 'checkpoint'")
    if every is not None and not (_whole(every) and every >= 1):
        raise MemextError(f"unroll: every is {every!r}; a number of steps, at least 1, or None is needed")
    if not _number(skip) or not 0 <= skip < 1 or (skip and (method != "checkpoint" or steps_at_once != 1)):
        raise MemextError(f"unroll: skip is {skip!r} with method={method!r} and steps_at_once={steps_at_once!r}; a "
                          "share of the steps, 0 <= skip < 1, is allowed with method='checkpoint' and steps_at_once=1")
    if steps is not None and (method != "online" or not isinstance(steps, Sequence | set | frozenset)
                              or not all(_whole(t) and 0 <= t < count for t in steps)):
        raise MemextError(f"unroll: steps is {steps!r} with method={method!r}; steps from 0 to {count - 1} are "
                          "allowed, with method='online'")


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _start(program: Program, state) -> tuple[int, list]:
    if state is None:
        return 0, program.hidden()
    flat, program.state_spec = tree_flatten(state if isinstance(state, tuple | list) else (state,))
    if not flat or not all(isinstance(s, Tensor) for s in flat):
        raise MemextError(f"unroll: state is {state!r:.80}; a tuple of tensors is needed, in the order in which the "
                          "step takes them after x")
    return len(flat), [*flat, *program.hidden()]


def _widen(course: Course, steps_at_once: int | str, x, start: list) -> None:
    """Sets the number of steps done at once."""
    width = AT_ONCE if isinstance(steps_at_once, str) else steps_at_once
    if width == 1:
        return
    why = "its input is a function" if course.inputs is not None else why_not(course.program, course.explicit)
    if why is not None:
        if steps_at_once in ("auto", "fast"):
            return
        raise MemextError(f"unroll: steps_at_once is {steps_at_once}, but these steps cannot be merged: {why}. Use "
                          "steps_at_once=1")
    if steps_at_once == "auto" and not _same(course, min(width, course.steps), x, start):
        return
    course.width, course.merged = width, merging(course.program)


def _same(course: Course, k: int, x, start: list) -> bool:
    """Whether the first k steps give the same outputs, merged and one by one; leaves no trace."""
    program, found = course.program, []
    for width in (1, k):
        probe = Course(program, k, course.static, None, 0, course.device, width=width, every=k,
                       merged=merging(program) if width > 1 else nullcontext, taped=True)
        with program.aside(), fork(course.device):
            found.append(forward(probe, x if x is None or course.static else x[:k], start)[0])
    return all(torch.equal(a, b) for a, b in zip(*found))
