"""Code written for SpikingJelly 0.0.0.0.12, 0.0.0.0.13 and 0.0.0.0.14, unchanged, on SpikingJelly 2.0.0.

    import sj_memext.compat                                     # opt-in, before the old code is imported
    from spikingjelly.clock_driven import neuron                # there is no such module in 2.0.0
    node = neuron.MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
    retrofit(net, "recompute")                                  # the methods work under the old names

What each old name is now, and what differs, is printed once, to stderr; docs/design/compat.md has the whole table. What
cannot be the same is refused with a MemextError, or said in a RuntimeWarning. A module that really exists is never
covered: with SpikingJelly 0.0.0.0.14 installed, the old names are its own, and nothing is done.

neuron.py        clock_driven.neuron                     surrogate, functional, layer, encoding, monitor: likewise
cext.py          cext.neuron (cext_layer.py: .layer, ...)  event_driven.py: event_driven.neuron, .encoding
_equations.py    neuronal_charge and its like, for subclasses that override them
_modern.py       backend= in activation_based            _v_seq.py: v_seq without its memory
_modules.py      how the old modules come to be found    _mapping.py: the table
"""
from __future__ import annotations

import multiprocessing
import os
import sys

from sj_memext import _host

from . import _mapping

__all__ = ["install", "installed", "mapping", "uninstall"]

_active = False


def install(quiet: bool = False) -> None:
    """Makes the old names work from now on; on import, too. Calling it again is fine. quiet: without the table."""
    global _active
    if _active or not _host.IS_2:
        return
    from . import _equations, _modern, _modules, encoding, event_driven, functional, layer, rnn, surrogate
    _active = True
    for part in (_equations, surrogate, functional, layer, encoding, rnn, event_driven, _modern, _modules):
        part.install()
    if not quiet:
        _print_once()


def uninstall() -> None:
    """Takes everything back. Objects that were made meanwhile keep their classes."""
    global _active
    if not _active:
        return
    from . import _modules
    from ._patches import PATCHES
    _modules.uninstall()
    PATCHES.undo()
    _active = False


def installed() -> bool:
    """Do the old names work here through this package? False on SpikingJelly 0.0.0.0.14, where they are real."""
    return _active


def mapping() -> list[tuple[str, str, str]]:
    """(old name, what it is now, what differs), as printed."""
    return list(_mapping.ROWS)


_printed = False


def _print_once() -> None:
    """To stderr, in the first process only: not in DataLoader workers, nor in the other ranks of torchrun."""
    global _printed
    if _printed or multiprocessing.parent_process() is not None or os.environ.get("RANK", "0") != "0":
        return
    _printed = True
    wide = max(len(old) for old, _, _ in _mapping.ROWS)
    lines = [f"sj_memext.compat: names of SpikingJelly 0.0.0.0.12 to 0.0.0.0.14 on {_host.VERSION}"]
    lines += [f"  {old:{wide}}  {now}{f' ({differs})' if differs else ''}" for old, now, differs in _mapping.ROWS]
    print("\n".join(lines), file=sys.stderr)


install()
