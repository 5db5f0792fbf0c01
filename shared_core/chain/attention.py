"""Softmax-free attention on spikes (Spikformer): keeps the spikes q, k, v as bits, and neither products nor copies.

    a = v k^T,   x = a q * scale          one [d, d] matrix a per head, so no [L, L] map either
    grad_a = g q^T,  grad_q = a^T g,  grad_v = grad_a k,  grad_k = grad_a^T v        with g = scale * grad_x

Source: Spikformer, as SpikingJelly 2.0.0's layer.SpikingSelfAttention orders its products. The neuron behind it keeps
this node instead of x: running it again costs d + L products an element.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ._links import Chained, keep, made, refuse_double_backward, value_of

__all__ = ["spike_attention"]


def spike_attention(qkv: Tensor, scale: float) -> Tensor:
    """qkv [*, 3, heads, d, L] of spikes -> [*, heads, d, L]."""
    return _SpikeAttention.apply(qkv, scale)


class _SpikeAttention(Chained):
    @staticmethod
    def forward(ctx, qkv, scale):
        tensors: list[Tensor] = []
        ctx.kept, ctx.scale, ctx.levels = keep(qkv, tensors), scale, None
        ctx.save_for_backward(*tensors)
        x = _attended(qkv, scale)
        ctx.made, ctx.products = made(x), qkv.shape[-1] + qkv.shape[-2]
        return x

    @staticmethod
    def rebuild(ctx):
        return _attended(value_of(ctx.kept, ctx.saved_tensors), ctx.scale)

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("chain.spike_attention")
        qkv = value_of(ctx.kept, ctx.saved_tensors)
        q, k, v = qkv.unbind(-4)
        g = grad * ctx.scale
        out = torch.empty_like(qkv)
        grad_q, grad_k, grad_v = out.unbind(-4)
        grad_a = g @ q.transpose(-2, -1)
        grad_v.copy_(grad_a @ k)
        grad_k.copy_(grad_a.transpose(-2, -1) @ v)
        grad_q.copy_((v @ k.transpose(-2, -1)).transpose(-2, -1) @ g)
        return out, None


def _attended(qkv: Tensor, scale: float) -> Tensor:
    q, k, v = qkv.unbind(-4)
    return (v @ k.transpose(-2, -1)) @ q * scale
