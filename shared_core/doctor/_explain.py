"""explain(model, sample): a forward pass is watched, and said to a reader."""
from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from .._plan_copy import reset_copy, unwrapped
from ..errors import MemextError
from ..temporal._hosts import imported
from ._graph import Holder, holders, parameters_reached
from ._watch import Watch

__all__ = ["Expected", "Explanation", "Finding", "Neuron", "explain", "look"]


@dataclass(frozen=True)
class Neuron:
    """One neuron as it was seen. name: in the model.  kind: its class.  framework: "spikingjelly", "snntorch", or
    "by hand".

    step_mode: "s", "m", or None where there is none.  T, N: time steps and samples, None where nobody can tell.
    calls: of it in the steps watched.  per_step: calls in one time step (2: two layers share its membrane).
    looped: is time a loop in Python?  rate: share of its outputs that are not 0.
    ours: the class that retrofit would make of it, or None; then `why`.
    """

    name: str
    kind: str
    framework: str
    step_mode: str | None
    T: int | None
    N: int | None
    calls: int
    per_step: int
    looped: bool
    rate: float | None
    ours: str | None
    why: str | None


@dataclass(frozen=True)
class Finding:
    """key: which rule.  problem: is something wrong, or good to know.  modules: which.  text, todo: words."""

    key: str
    problem: bool
    modules: tuple[str, ...]
    text: str
    todo: str = ""


@dataclass(frozen=True)
class Expected:
    """Peak bytes of one training step, predicted. call: what to write.  problem: why it cannot be predicted."""

    name: str
    call: str
    peak: int | None
    of_native: float | None
    problem: str | None = None


@dataclass
class Explanation:
    """What explain found. model: its class.  shapes: of the sample.  T, N: as most neurons saw them.

    steps: calls of the model in a training step.  advice: the one thing to do first.
    """

    model: str
    shapes: list[tuple[int, ...]]
    steps: int
    T: int | None
    N: int | None
    neurons: list[Neuron] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    methods: list[Expected] = field(default_factory=list)
    advice: str = ""

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.problem]

    def text(self, every: bool = False) -> str:
        """For a reader.  every: a line per neuron, instead of one for all that are alike."""
        from ._text import text
        return text(self, every)

    def to_dict(self) -> dict:
        """Everything, as JSON types; sizes in bytes."""
        return {**asdict(self), "shapes": [list(shape) for shape in self.shapes]}

    __str__ = text


@dataclass
class Look:
    """What the rules judge. before: states that carried a graph before anything ran: {module name: [state names]}.

    reached: ids of tensors that get a gradient, or None where no graph was there to ask.  holders: who keeps graphs
    alive after the steps; `grows`: of those, what had more items after another step.  error: raised by the forward.
    """

    watch: Watch
    steps: int
    samples: tuple
    before: dict[str, list[str]] = field(default_factory=dict)
    reached: set[int] | None = None
    holders: list[Holder] = field(default_factory=list)
    grows: set[str] = field(default_factory=set)
    error: Exception | None = None
    crashed: Exception | None = None


def explain(model: nn.Module, sample, steps: int = 1, plan: bool = True) -> Explanation:
    """What is wrong with how this model uses memory, and what to do. The model is left as it was.

    model: of SpikingJelly, of snnTorch, or with neurons that are written by hand; retrofitted or not.
    sample: a batch as the model gets it in training: a tensor, a tuple of tensors, or a shape, for random input.
    steps: how often your training loop calls the model for one batch, where time is a loop around it (each time with
        this sample).
    plan: also predict the peak of a training step under each method (some seconds for a large model).
    Returns: Explanation; print(it.text()).  Raises MemextError: bad arguments. A forward pass that fails is a finding.

    How: the forward pass runs `steps` times with gradients, and once more without; no backward pass, and parameters,
    gradients, buffers, neuron states, random generators and lists of the model are put back. Costs the memory of a
    native forward pass.
    """
    samples = _checked(model, sample, steps)
    model = unwrapped(model)
    from ._expect import expected
    from ._neurons import neurons
    from ._rules import findings, first

    seen = look(model, samples, steps)
    found = Explanation(type(model).__name__, [tuple(x.shape) for x in samples], steps, None, None)
    found.neurons, found.T, found.N = neurons(seen)
    found.findings = findings(seen, found)
    if plan and seen.error is None:
        found.methods = expected(model, samples, steps, found, seen.watch)
    found.advice = first(found, seen)
    return found


def _checked(model, sample, steps) -> tuple[Tensor, ...]:
    if not isinstance(model, nn.Module):
        raise MemextError(f"explain: model is {type(model).__name__}; a torch.nn.Module is needed")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise MemextError(f"explain: steps is {steps!r}; how often the model is called in a training step, at least 1")
    tensors = (sample,) if isinstance(sample, Tensor) else sample
    if not isinstance(tensors, tuple | list) or not tensors:
        tensors = None
    elif all(isinstance(n, int) and n > 0 for n in tensors):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        return (torch.rand(tuple(tensors), generator=generator).to(device),)
    if tensors is None or not all(isinstance(x, Tensor) for x in tensors):
        raise MemextError(f"explain: sample is {str(sample)[:80]!r} ({type(sample).__name__}); allowed: a tensor, a "
                          "tuple of tensors, or a shape such as (4, 32, 3, 224, 224)")
    return tuple(tensors)


def look(model: nn.Module, samples: tuple, steps: int) -> Look:
    """Runs the model and puts everything back."""
    watch = Watch(model, imported())
    seen = Look(watch, steps, samples)
    seen.before = carried(watch)
    with _left_as_it_was(watch), torch.random.fork_rng(devices=_devices(model)):
        reset_copy(model)
        try:
            with watch, torch.enable_grad():
                for _ in range(steps):
                    model(*samples)
        except Exception as problem:
            seen.error = problem
            return seen
        seen.reached = parameters_reached(watch.kept)
        watch.kept.clear()
        states = {m: set(watch.states(m)) for m in watch.seen}
        seen.holders = holders(model, states)
        sizes = {holder.where: holder.size for holder in seen.holders}
        watch.counting = False
        with watch, torch.enable_grad() if sizes else torch.no_grad():
            model(*samples)
        seen.grows = {h.where for h in holders(model, states) if h.size > sizes.get(h.where, h.size)}
    return seen


def carried(watch: Watch) -> dict[str, list[str]]:
    """States that carry a graph now, by module name."""
    found = {}
    for module, seen in watch.seen.items():
        names = [name for name, value in watch.states(module).items()
                 if isinstance(value, Tensor) and value.grad_fn is not None]
        if names:
            found[seen.name or type(module).__name__] = names
    return found


def _devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def _left_as_it_was(watch: Watch) -> Iterator[None]:
    """Neuron states, buffers, and the plain attributes of modules: which objects they are, and what containers hold."""
    kept = []
    for module in watch.seen:
        attributes = {name: value for name, value in vars(module).items()
                      if name not in ("_forward_hooks", "_forward_pre_hooks", "_parameters", "_modules", "_buffers")}
        contents = [(value, copy.copy(value)) for value in attributes.values()
                    if type(value) in (list, dict, set, deque)]
        states = [(host, name, host.get(module, name)) for host in watch.hosts for name in host.states(module)]
        kept.append((module, attributes, contents, dict(module._buffers), states))
    for module, _, _, buffers, _ in kept:  # copies stand in: a graph of the user's may have saved the buffers
        module._buffers.update({name: b.detach().clone() for name, b in buffers.items() if b is not None})
    behind = _behind_hooks(watch.model)
    try:
        yield
    finally:
        for module, attributes, contents, buffers, states in kept:
            for name in [n for n in vars(module) if n not in attributes and not n.startswith("_")]:
                del module.__dict__[name]
            module.__dict__.update(attributes)
            for value, was in contents:
                _refill(value, was)
            for host, name, value in states:
                host.set(module, name, value)
            module._buffers.clear()
            module._buffers.update(buffers)
        for value, was in behind:
            _refill(value, was)


def _behind_hooks(model: nn.Module) -> list[tuple]:
    """Containers of monitors, with what they hold now."""
    owners = {id(owner): owner for module in model.modules()
              for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
              for owner in _owners(hook)}
    return [(value, copy.copy(value)) for owner in owners.values() for value in owner if type(value) in (list, deque)]


def _owners(hook) -> Iterator[list]:
    from .._memory_graph import _inside

    parts = list(_inside(hook))
    yield parts
    for part in parts:
        if not isinstance(part, (nn.Module, Tensor)) and hasattr(part, "__dict__") and not isinstance(part, type):
            yield list(vars(part).values())


def _refill(container, was) -> None:
    if isinstance(container, (dict, set)):
        container.clear()
        container.update(was)
    elif isinstance(container, deque):
        container.clear()
        container.extend(was)
    else:
        container[:] = was
