"""What snnTorch's NIR exporter is told of our classes.

It asks isinstance, so FusedLeaky and FusedSynaptic are exported as what they replace, and a neuron that computes
something else would be exported as the Leaky it derives from: that is refused.
"""
from __future__ import annotations

from torch import nn

from shared_core._when_imported import when_imported
from shared_core.errors import MemextError

__all__ = ["refuse"]


def refuse(what: str, module: nn.Module) -> None:
    """Raises MemextError if `module` is a neuron of ours whose dynamics no neuron of the framework has."""
    reason = _another(module)
    if reason is not None:
        raise MemextError(f"{what}: a {type(module).__name__} cannot be exported: {reason}, which no neuron of "
                          "snnTorch and no node of NIR has. Export a net of Leaky and Synaptic")


def _another(module: nn.Module) -> str | None:
    from .reversible import ReversibleLeaky
    from .sharing import JoinedLeaky

    if isinstance(module, ReversibleLeaky):
        return "its output carries its neighbours' input (RevSNN Eq. 1-6)"
    if isinstance(module, JoinedLeaky):
        return "it shares its membrane with other layers"
    if getattr(module, "_groups", 1) > 1:
        return f"{module._groups} channel groups share its membrane"
    return None


def _tell_nir(exporter) -> None:
    extract = exporter._extract_snntorch_module

    def _extract_snntorch_module(module):
        refuse("export_to_nir", module)
        return extract(module)

    exporter._extract_snntorch_module = _extract_snntorch_module


when_imported("snntorch.export_nir", _tell_nir)
