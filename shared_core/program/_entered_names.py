"""print(net) shows the classes that the program wrote, not what its neurons have become."""
from __future__ import annotations

from torch import nn

from .._entering import entered

__all__ = ["keep_names"]


def keep_names() -> None:
    """Calling it again changes nothing."""
    theirs = nn.Module._get_name
    if getattr(theirs, "_of_memext", False):
        return

    def _get_name(self):
        records = entered(self)
        return records[0].before.__name__ if records else theirs(self)

    _get_name._of_memext = True
    nn.Module._get_name = _get_name
