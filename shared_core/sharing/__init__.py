"""Layers that share a membrane: EfficientLIF-Net (Kim et al. 2023), Eq. 4-6; with channel groups, Eq. 12-17.

_share.py      the plan: who joins whom, in which modules time is outermost, what each object becomes
_layers.py     the neurons of a net in the order in which they run, and their activation sizes
_groups.py     lists of names, or "auto", made into groups; why layers cannot share
_regions.py    the smallest part of a net that holds a whole group
_stepped.py    such a part on a sequence: one step at a time, through temporal.unroll
_rates.py      how often neurons fire, with and without shared membranes
_together.py   what the members of a group have in common

What must be known of a framework is a `SharingHost`; each adapter has one, and offers `share(net, layers=, channels=)`.
"""
from ._layers import SharingHost
from ._share import Sharer
from ._together import Together

__all__ = ["Sharer", "SharingHost", "Together"]
