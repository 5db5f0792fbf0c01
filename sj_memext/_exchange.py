"""What SpikingJelly's exporters and counters are told of our classes.

nir_exchange looks modules up by their exact class, and lynxi_exchange asks isinstance: the first would not know a
neuron of ours, the second would take one that computes something else for the LIF it derives from. Both are told when
somebody imports them. lava_exchange asks isinstance, too, and then the node itself (AskedByLava). op_counter counts
Torch's operators, of which a neuron that is one kernel has one: while it counts, our neurons run on the framework's own
equations (neuron.py asks `operations_are_counted`).
"""
from __future__ import annotations

from torch import nn
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch.compiler import is_compiling
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from shared_core._entering import entered, leave, plain_type
from shared_core._when_imported import when_imported
from shared_core.errors import MemextError

from ._host import neuron

__all__ = ["AskedByLava", "framework_class", "operations_are_counted", "refuse"]

_OURS = ("sj_memext", "shared_core")
_HERE = "spikingjelly.activation_based"


def framework_class(module: nn.Module) -> type:
    """The class outside this package that computes what `module` computes: of a FusedLIFNode, neuron.LIFNode; of a
    module that is not ours, its own. Raises MemextError: there is none."""
    refuse("export_to_nir", module)
    records = entered(module)
    cls = records[0].before if records else plain_type(module)
    return next(base for base in cls.__mro__ if base.__module__.split(".")[0] not in _OURS)


def refuse(what: str, module: nn.Module) -> None:
    """Raises MemextError if `module` is a neuron of ours whose dynamics no neuron of the framework has."""
    reason = _another(module)
    if reason is not None:
        raise MemextError(f"{what}: a {plain_type(module).__name__} cannot be exported: {reason}, which no neuron of "
                          f"{neuron.__name__} and no exchange format has. Export a net of IFNode and LIFNode")


def _another(module: nn.Module) -> str | None:
    from .reversible import _Reversible
    from .sharing import _Joined

    if isinstance(module, _Reversible):
        return "its output carries its neighbours' input (RevSNN Eq. 1-6)"
    if isinstance(module, _Joined):
        return "it shares its membrane with other layers"
    if getattr(module, "_groups", 1) > 1:
        return f"{module._groups} channel groups share its membrane"
    return None


class AskedByLava:
    """Mixed into our neurons. lava_exchange reads `lava_s_cale`, as every node has it, before it makes Lava's neuron of
    an IFNode or LIFNode: reading it raises MemextError on a node that Lava's neuron would not be."""

    @property
    def lava_s_cale(self):
        refuse("lava_exchange", self)
        if "lava_s_cale" not in self.__dict__:  # 0.0.0.0.14 sets it for backend="lava" only
            raise AttributeError("lava_s_cale")
        return self.__dict__["lava_s_cale"]

    @lava_s_cale.setter
    def lava_s_cale(self, value):
        self.__dict__["lava_s_cale"] = value


def operations_are_counted() -> bool:
    """Is one of op_counter's contexts active? Asked in every call of a neuron, and nearly always no."""
    if is_compiling() or not (_len_torch_dispatch_stack() or _len_torch_function_stack()):
        return False
    active = (*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack())
    return any(cls.__module__.startswith(f"{_HERE}.op_counter") for mode in active for cls in type(mode).__mro__)


def _tell_nir(exporter) -> None:
    """Its table has exact classes of modules: ours stand in it as the framework's that they replace."""
    mapper = exporter._ModuleMapper
    known = mapper.map_dict.fget

    def map_dict(self) -> dict:
        table = known(self)
        ours = {type(module): framework_class(module) for module in self.net.modules()}
        return table | {cls: table[host] for cls, host in ours.items() if host in table}

    mapper.map_dict = property(map_dict)


def _tell_lynxi(exporter) -> None:
    convert = exporter.to_lynxi_supported_module

    def to_lynxi_supported_module(m_in, T):
        refuse("to_lynxi_supported_module", m_in)
        found = convert(m_in, T)
        while entered(found):  # a copy: the converter hands on what it does not know
            leave(found)
        return found

    exporter.to_lynxi_supported_module = to_lynxi_supported_module


when_imported(f"{_HERE}.nir_exchange.to_nir", _tell_nir)
when_imported(f"{_HERE}.lynxi_exchange", _tell_lynxi)
