"""SpikingJelly's attention layers in a chain: products of spikes keep bits. Entered by retrofit, not constructed."""
from __future__ import annotations

from shared_core.chain.attention import spike_attention
from shared_core.chain.modules import gains

from ._host import layer

__all__ = ["LAYERS", "ChainSpikingSelfAttention"]


class ChainSpikingSelfAttention(layer.SpikingSelfAttention):
    """layer.SpikingSelfAttention whose product of q, k and v keeps their bits. See shared_core.chain.attention."""

    @staticmethod
    def _ssa_kernel_torch(qkv, scale):
        if not gains(qkv):
            return layer.SpikingSelfAttention._ssa_kernel_torch(qkv, scale)
        return spike_attention(qkv, scale)


LAYERS = {layer.SpikingSelfAttention: ChainSpikingSelfAttention}
