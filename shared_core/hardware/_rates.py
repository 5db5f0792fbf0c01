"""What every model asks of a table before it counts: time steps, rates, and which layers it leaves out."""
from __future__ import annotations

from ..errors import MemextError
from .table import LayerTable

__all__ = ["not_counted", "rates_of", "steps_of"]


def steps_of(where: str, table: LayerTable, T: int | None) -> int:
    """T, or the table's.  Raises MemextError: there is none, or nothing to count in the table."""
    if not isinstance(table, LayerTable):
        raise MemextError(f"{where}: table is {type(table).__name__}; allowed: a LayerTable; layer_table(net, sample) "
                          "makes one")
    found = table.T if T is None else T
    if found is None:
        raise MemextError(f"{where}: neither the table nor the call says how many time steps there are; pass T=4")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise MemextError(f"{where}: T is {found!r}; allowed: whole numbers from 1 on")
    if not any(layer.counted for layer in table):
        raise MemextError(f"{where}: no layer of the table has synaptic operations: "
                          f"{', '.join(f'{layer.name} ({layer.kind})' for layer in table)}")
    return found


def rates_of(where: str, table: LayerTable, sparsity: float | str | None) -> dict[str, float]:
    """Share of operations that is carried out, by layer name. sparsity: see estimate()."""
    if sparsity is None or sparsity == "weights":
        unknown = [layer.name for layer in table if layer.counted and layer.input_rate is None]
        if unknown:
            raise MemextError(f"{where}: the table has no input_rate for {', '.join(unknown)}; pass sparsity=0.9 (the "
                              "same for all layers), or give each row an input_rate")
        return {layer.name: layer.input_rate * (1 - layer.weight_sparsity if sparsity else 1)
                for layer in table if layer.counted}
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1:
        raise MemextError(f"{where}: sparsity is {sparsity!r}; allowed: from 0 to 1, None (each layer's own), or "
                          "'weights' (its own, and zero weights too)")
    return {layer.name: 1 - sparsity for layer in table if layer.counted}


def not_counted(table: LayerTable, why: str) -> tuple[str, ...]:
    """What the table holds beside convolutions and linear layers."""
    return tuple(f"{layer.name} ({layer.kind}): {layer.reason or why}" for layer in table
                 if not layer.counted and layer.kind != "neuron")
