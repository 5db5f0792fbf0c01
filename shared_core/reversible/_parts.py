"""F and G of every block with what they read: parameters, hidden states, buffers. What it takes to run one again
without anyone noticing.

A rebuilt F gets aliases for its parameters (their hooks run once, at the end), copies of its buffers (running
statistics move once), the neurons' states and the random numbers that it had; afterwards all is as it was.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn

from .._again import put_back
from .._tape import _current
from ..errors import MemextError
from ..temporal._captured import Place
from ..temporal._hosts import Cell, Host, imported

__all__ = ["Call", "Part", "aside", "is_rebuilding", "key", "part_of", "parts_of", "rebuilding"]

_rebuilding: ContextVar[bool] = ContextVar("rebuilding", default=False)


def is_rebuilding() -> bool:
    """Whether a forward pass runs again for the backward pass (or for a check): hooks that count should not, then."""
    return _rebuilding.get()


@contextmanager
def rebuilding() -> Iterator[None]:
    token, tape = _rebuilding.set(True), _current.set(None)  # these are none of the calls that a tape counts
    try:
        yield
    finally:
        _current.reset(tape)
        _rebuilding.reset(token)


@dataclass
class Part:
    """F or G of one block.

    name: for messages.  places, held: where its parameters are, and which they are: a call of torch.func puts others
    there for a while.  parameters: those that learn, each once.  cells: hidden states of neurons.
    """

    name: str
    module: nn.Module
    modules: list[nn.Module]
    places: list[Place]
    held: list[Tensor]
    parameters: list[Tensor]
    cells: list[Cell]


@dataclass
class Call:
    """One run of a part.

    before: states that it started from, one per cell; saved: where among the node's saved tensors those are that are
    tensors (number in `before` -> number there).  random: states of the generators, if it drew.
    """

    part: Part
    before: list
    random: tuple[Tensor, ...] | None = None
    saved: dict[int, int] = field(default_factory=dict)


def key(cell: Cell) -> tuple[int, str]:
    return id(cell.module), cell.name


def parts_of(blocks: Sequence[nn.Module], where: str) -> list[Part]:
    """F and G of the first block, then of the second, and so on."""
    hosts = imported()
    parts = []
    for i, block in enumerate(blocks):
        name = f"{where}: block {i}" if len(blocks) > 1 else where
        parts += [part_of(block.f, f"{name}, F", hosts), part_of(block.g, f"{name}, G", hosts)]
    return parts


def part_of(module: nn.Module, name: str, hosts: Sequence[Host]) -> Part:
    """What it takes to run this module again.  name: for messages."""
    modules = list(module.modules())
    places = [Place(m._parameters, n) for m in modules for n, p in m._parameters.items() if p is not None]
    held = [place.get() for place in places]
    cells = [Cell(host, m, n) for m in modules for host in hosts for n in host.states(m)]
    for cell in cells:
        if isinstance(cell.get(), list):
            raise MemextError(f"{name}: {type(cell.module).__name__} carries the list {cell.name!r} from step to step "
                              "and writes into it, so what it was before cannot be brought back; put it outside the "
                              "reversible blocks")
    return Part(name, module, modules, places, held, list({id(p): p for p in held if p.requires_grad}.values()), cells)


@contextmanager
def aside(parts: Iterable[Part], training: dict[nn.Module, bool] | None = None) -> Iterator[dict[int, Tensor]]:
    """Runs inside leave no trace. Yields the alias of each parameter that learns, by the parameter's id.

    training: the mode that modules are in, inside. All buffers are copied: which of them a run writes to cannot be
    told.
    """
    aliases: dict[int, Tensor] = {}
    copies: dict[int, Tensor] = {}
    undo: list[tuple[Callable, tuple]] = []
    seen: set[nn.Module] = set()
    try:
        for part in parts:
            states = {key(cell) for cell in part.cells}
            for place, p in zip(part.places, part.held):
                undo.append((place.set, (place.get(),)))
                if p.requires_grad and id(p) not in aliases:
                    aliases[id(p)] = p.detach().requires_grad_()
                place.set(aliases.get(id(p), p))
            for m in part.modules:
                if m in seen:
                    continue
                seen.add(m)
                undo.append((put_back, (m, dict(m.__dict__), dict(m._buffers))))
                for name, value in m._buffers.items():
                    if value is not None and (id(m), name) not in states:
                        m._buffers[name] = copies.setdefault(id(value), value.clone())
                if training is not None:
                    m.training = training.get(m, m.training)
            for cell in part.cells:
                undo.append((cell.set, (cell.get(),)))
        with rebuilding():
            yield aliases
    finally:
        for function, arguments in reversed(undo):
            function(*arguments)
