"""One step of a network, whatever its form: step mode "s" or "m", states inside or handed around, several outputs."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .._entering import entered
from ..errors import MemextError
from ..reversible import coupling
from ..temporal._captured import captured
from ._exit_state import Places, Snapshot, reset

__all__ = ["Step"]


class Step:
    """net: a Module, or a function step(x, *state) that closes over modules.  Arguments: early_exit's."""

    def __init__(self, net: nn.Module | Callable, state, output: Callable | None, steps_attribute: str | None,
                 encode: Callable | None):
        self.net, self.state, self.output, self.attribute, self.encode = net, state, output, steps_attribute, encode
        self.look()

    def look(self) -> None:
        """At the modules as they are now."""
        net = self.net
        self.roots = [net] if isinstance(net, nn.Module) else captured(net)[0]
        if not self.roots:
            raise MemextError("early_exit: the step is a function in which no torch.nn.Module was found; let it close "
                              "over the network, as in unroll")
        names = {m: name for root in reversed(self.roots) for name, m in root.named_modules()}
        self.named = [(name, m) for m, name in names.items()]
        self.modules = [m for _, m in self.named]
        # Layers without a step mode, such as torch's Linear, take both. A function does its step as it likes.
        self.multi_step = isinstance(net, nn.Module) and any(getattr(m, "step_mode", None) == "m"
                                                             for m in self.modules)
        self.places = Places(self.named)

    def __getstate__(self) -> tuple:
        return self.net, self.state, self.output, self.attribute, self.encode

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)  # places are those of the copy

    def classes(self) -> list[tuple]:
        """What the modules are, and what was made of them."""
        return [(m, type(m), entered(m)) for m in self.modules]

    def _remember(self) -> None:
        encoder = self.encode.modules() if isinstance(self.encode, nn.Module) else ()
        self._before, self._were = Snapshot([*self.modules, *encoder]), self.classes()

    def put_back(self) -> None:
        """Everything as when running() began."""
        if self.classes() == self._were:
            self._before.put_back()
            return
        # The first forward has made something else of the modules (share() without a sample), and that is to stay.
        self._before.put_modes_back()
        self.look()
        reset(self.roots)
        self._remember()

    def root(self) -> nn.Module:
        return self.roots[0] if len(self.roots) == 1 else nn.ModuleList(self.roots)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Without gradients; afterwards every module is as it was."""
        self._remember()
        try:
            with torch.no_grad():
                yield
        finally:
            self.put_back()

    def start(self, x: Tensor):
        """Everything at rest: neurons as after a reset, what else modules hold as before the call. In evaluation mode.
        Returns the states that are handed around, for a batch like x [N, *]."""
        self.put_back()
        reset([*self.roots, *([self.encode] if isinstance(self.encode, nn.Module) else [])])
        for root in self.roots:
            root.eval()
        for m in self.modules:
            if isinstance(m, coupling.ReversibleBlock | coupling.ReversibleSequence) and m.carry_state is None:
                m.carry_state = True  # in step mode "m" they would start each call from rest
        if self.attribute is not None:
            setattr(self.net, self.attribute, 1)
        if self.state is None:
            return ()
        found = self.state(x) if callable(self.state) else self.state
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    def __call__(self, x: Tensor, states: tuple) -> tuple[Tensor, tuple]:
        """x [N, *] -> (scores [N, K] of this step, states)."""
        sequence = self.multi_step and self.attribute is None
        try:
            out = self.net(x.unsqueeze(0) if sequence else x, *states)
        except MemextError:
            raise
        except Exception as error:
            raise MemextError(f"early_exit: the network raised {type(error).__name__} on one step of shape "
                              f"{tuple(x.shape)}{' (as a sequence of one step)' if sequence else ''}: {error}. x is "
                              "[T, N, *], or [N, *] with T=...; states that you hold yourself must be at rest"
                              ) from error
        if self.state is not None:
            if not isinstance(out, tuple) or len(out) != 2:
                raise MemextError(f"early_exit: with state= the step must return two things, (output, states); it "
                                  f"returned {_shown(out)}")
            out, after = out
            after = tuple(after) if isinstance(after, tuple | list) else (after,)
            if len(after) != len(states):
                raise MemextError(f"early_exit: the step returned {len(after)} states; {len(states)} were given with "
                                  "state=")
            states = after
        return self.scores(out, len(x)), states

    def scores(self, out, samples: int) -> Tensor:
        if self.output is not None:
            out = self.output(out)
        if not isinstance(out, Tensor):
            raise MemextError(f"early_exit: a step returned {_shown(out)}; say which of it are the scores, e.g. "
                              "output=lambda out: out[0] for the spikes of (spk, mem)")
        if self.multi_step and out.dim() == 3:
            if len(out) != 1:
                raise MemextError(f"early_exit: the network made {len(out)} steps of a sequence of one, so it cannot "
                                  f"be stopped between them{self.on_sequences()}")
            out = out.squeeze(0)
        if out.dim() != 2 or out.shape[0] != samples or out.shape[1] < 2:
            raise MemextError(f"early_exit: a step of {samples} samples returned {tuple(out.shape)}; scores [N, K] of "
                              "at least two classes are needed. A network that loops over time by itself cannot be "
                              "stopped: pass a function that does one step (see state=), or steps_attribute='T' if it "
                              "only repeats its input")
        return out if out.dtype == torch.float64 else out.float()

    def on_sequences(self) -> str:
        """Which layers there are that may mix the steps of a sequence; "" for none."""
        found = [f"{name or 'the network'} ({type(m).__name__})" for name, m in self.named
                 if callable(getattr(m, "supported_step_mode", None)) and tuple(m.supported_step_mode()) == ("m",)]
        return f"; layers that work on whole sequences: {', '.join(found)}" if found else ""

    def whole(self, x_seq: Tensor):
        """A network in step mode "m" on a sequence [T, N, *]: what it returns, scores [T, N, K] or [N, K]."""
        if self.attribute is not None:
            setattr(self.net, self.attribute, len(x_seq))
        try:
            out = self.net(x_seq[0] if self.attribute is not None else x_seq)
        finally:
            if self.attribute is not None:
                setattr(self.net, self.attribute, 1)
        return out if self.output is None else self.output(out)


def _shown(out) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {len(out)}: {', '.join(type(part).__name__ for part in out)}"
    return f"a {type(out).__name__}"
