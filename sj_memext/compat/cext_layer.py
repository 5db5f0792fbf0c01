"""spikingjelly.cext.layer and .functional of 0.0.0.0.12: products with a sparse matrix, here dense, on every device."""
from __future__ import annotations

from torch import Tensor, nn

__all__ = ["AutoSparseLinear", "SparseLinear", "sparse_mm_dense"]


def sparse_mm_dense(sparse: Tensor, dense: Tensor) -> Tensor:
    """The product of [M, N] and [N, P]."""
    return sparse @ dense


class SparseLinear(nn.Linear):
    """torch.nn.Linear; the extension multiplied with cuSPARSE."""


class AutoSparseLinear(nn.Linear):
    """torch.nn.Linear, which the extension used wherever its sparse product was not faster."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, in_spikes: bool = False):
        super().__init__(in_features, out_features, bias)
        self.in_spikes, self.critical_sparsity = in_spikes, {}
