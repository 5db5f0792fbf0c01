"""Everything this adapter takes from SpikingJelly, and the versions it was tested with.

The other modules of sj_memext import the framework from here only, so that a missing or unsuitable SpikingJelly is one
clear message at one place. `spikingjelly.datasets` is never imported: it needs torchaudio.
"""
from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version_of

from . import _host_0_14

OLDEST = (2, 0, 0)         # first release with explicit-state neurons
NEWEST_TESTED = (2, 0, 0)  # a later 2.x runs with a warning, 3 and above is refused: pyproject.toml says the same
BEYOND = (3, 0, 0)
OLD = "0.0.0.0.14"         # the one older release that a part of this adapter works with (_host_0_14.py)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_version(text: str | None) -> str | None:
    """What is wrong with a SpikingJelly of this version: None if nothing, a warning's text if it is untested.

    text: as the package says it; None if it does not say (a source checkout). Raises ImportError outside the range.
    """
    allowed = f"sj_memext works with spikingjelly >={_dotted(OLDEST)},<{_dotted(BEYOND)}, and in part with {OLD}"
    numbers = re.match(r"\d+(\.\d+)*", text or "")
    if numbers is None:
        return f"spikingjelly does not say its version ({text!r}); {allowed}"
    found = tuple(map(int, numbers.group().split(".")))
    if numbers.group() == OLD:
        return (f"spikingjelly {OLD} is installed, which sj_memext works with in part: {_host_0_14.SUPPORTED}; "
                "for all else use 2.0.0")
    if found < OLDEST or found >= BEYOND:
        old_code = "; code written for an older release runs there with: import sj_memext.compat"
        raise ImportError(f"spikingjelly {text} is installed; {allowed}. "
                          f"Use: pip install 'spikingjelly>={_dotted(OLDEST)},<{_dotted(BEYOND)}'"
                          f"{old_code if found < OLDEST else ''}")
    if found > NEWEST_TESTED:
        return (f"spikingjelly {text} is newer than the last version sj_memext was tested with "
                f"({_dotted(NEWEST_TESTED)}); compare a run with and without sj_memext before relying on it")
    return None


def _installed() -> str | None:
    try:
        return _version_of("spikingjelly")
    except PackageNotFoundError:
        return None


VERSION = _installed()

try:
    import spikingjelly  # noqa: F401
except ImportError as problem:
    raise ImportError(f"sj_memext needs SpikingJelly, which cannot be imported ({problem}). "
                      "Use: pip install 'memext[spikingjelly]'") from problem

_doubt = check_version(VERSION)
if _doubt is not None:
    warnings.warn(_doubt, RuntimeWarning, stacklevel=2)

from spikingjelly.activation_based import base, functional, layer, neuron, surrogate  # noqa: E402

IS_2 = hasattr(base.MemoryModule, "functional_forward")  # else 0.0.0.0.14, also where it does not say its version
if not IS_2:
    _host_0_14.install(base, functional, layer, neuron, surrogate)

__all__ = ["IS_2", "VERSION", "base", "check_version", "functional", "layer", "neuron", "surrogate"]
