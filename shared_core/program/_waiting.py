"""Until the program imports a framework there is nothing to do, and Torch is not to be imported for it."""
from __future__ import annotations

import os
import sys

from . import _children

__all__ = ["Waiting"]


class Waiting:
    """One process of the program. session: the working part, made when the first framework has been imported."""

    def __init__(self, options):
        self.options, self.session, self.process, self.crashed = options, None, os.getpid(), False
        self.problems: list[str] = []

    def imported(self, framework: str) -> None:
        """Its neurons exist now. Whatever goes wrong with us, the program goes on with the framework as it is."""
        try:
            if self.session is None:
                from ._session import Session
                self.session = Session(self.options)
            self.session.imported(framework)
        except Exception as problem:
            self.problems.append(f"{framework} runs as it is: {type(problem).__name__}: {problem}")

    def caught_up(self) -> None:
        """Our own modules are imported to their end now."""
        if self.session is not None:
            self.session.catch_up()

    def forked(self) -> None:
        """In a new process: what its parent did is the parent's to tell. It tells its own, if multiprocessing ends
        it."""
        self.process = os.getpid()
        if self.session is not None:
            self.session.forget()
        _children.after_fork(self, self.end)

    def failed(self, error: BaseException) -> None:
        """The program ended with this exception, and its traceback is printed."""
        self.crashed = True
        try:
            if self.session is not None:
                self.session.explain(error)
        except Exception as problem:
            self.problems.append(f"the error could not be looked into: {type(problem).__name__}: {problem}")

    def end(self) -> None:
        if os.getpid() != self.process:
            return
        try:
            text = self._last_words()
            if text:
                print(text, file=sys.stderr, flush=True)
        except Exception as problem:  # a closed stderr too: the program's exit status stays its own
            try:
                print(f"memext run: no report: {type(problem).__name__}: {problem}", file=sys.stderr)
            except Exception:
                return

    def _last_words(self) -> str | None:
        first = os.environ.get("RANK", "0") == "0"  # torchrun's
        if self.session is not None:
            return self.session.end(self.crashed, self.problems) if first else self.session.close()
        if not first or _children.is_child():
            return None
        return "\n".join(["memext run: this process imported neither SpikingJelly nor snnTorch; nothing was done in it",
                          *self.problems])
