"""Spike-driven transformer, as its repository writes it: LIF before the convolution, a `hook` handed through, choice
of neuron by `spike_mode`, membrane shortcuts, and k * v instead of a product of matrices.
"""
import torch.nn as nn
from spikingjelly.clock_driven.neuron import MultiStepLIFNode, MultiStepParametricLIFNode

__all__ = ["SpikeDrivenTransformer"]


def _lif(spike_mode, **kwargs):
    if spike_mode == "lif":
        return MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy", **kwargs)
    return MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True, backend="cupy", **kwargs)


class MS_SPS(nn.Module):
    def __init__(self, in_channels=3, embed_dims=32, spike_mode="lif"):
        super().__init__()
        self.proj_conv = nn.Conv2d(in_channels, embed_dims // 4, 3, 1, 1, bias=False)
        self.proj_bn = nn.BatchNorm2d(embed_dims // 4)
        self.proj_lif = _lif(spike_mode)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.proj_conv1 = nn.Conv2d(embed_dims // 4, embed_dims, 3, 1, 1, bias=False)
        self.proj_bn1 = nn.BatchNorm2d(embed_dims)
        self.proj_lif1 = _lif(spike_mode)
        self.rpe_conv = nn.Conv2d(embed_dims, embed_dims, 3, 1, 1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(embed_dims)

    def forward(self, x, hook=None):
        T, B, _, H, W = x.shape
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, -1, H, W).contiguous()
        x = self.proj_lif(x)
        if hook is not None:
            hook[self._get_name() + "_lif"] = x.detach()
        x = self.maxpool(x.flatten(0, 1).contiguous())
        x = self.proj_bn1(self.proj_conv1(x))
        x_feat = x
        x = self.proj_lif1(x.reshape(T, B, -1, H // 2, W // 2).contiguous())
        if hook is not None:
            hook[self._get_name() + "_lif1"] = x.detach()
        x = self.rpe_bn(self.rpe_conv(x.flatten(0, 1).contiguous()))
        x = (x + x_feat).reshape(T, B, -1, H // 2, W // 2).contiguous()
        return x, (H // 2, W // 2), hook


class MS_MLP_Conv(nn.Module):
    def __init__(self, in_features, hidden_features, spike_mode="lif", layer=0):
        super().__init__()
        self.fc1_lif = _lif(spike_mode)
        self.fc1_conv = nn.Conv2d(in_features, hidden_features, kernel_size=1, stride=1)
        self.fc1_bn = nn.BatchNorm2d(hidden_features)
        self.fc2_lif = _lif(spike_mode)
        self.fc2_conv = nn.Conv2d(hidden_features, in_features, kernel_size=1, stride=1)
        self.fc2_bn = nn.BatchNorm2d(in_features)
        self.c_hidden, self.layer = hidden_features, layer

    def forward(self, x, hook=None):
        T, B, C, H, W = x.shape
        identity = x
        x = self.fc1_lif(x)
        if hook is not None:
            hook[self._get_name() + str(self.layer) + "_fc1_lif"] = x.detach()
        x = self.fc1_bn(self.fc1_conv(x.flatten(0, 1))).reshape(T, B, self.c_hidden, H, W).contiguous()
        x = self.fc2_lif(x)
        x = self.fc2_bn(self.fc2_conv(x.flatten(0, 1))).reshape(T, B, C, H, W).contiguous()
        return x + identity, hook


class MS_SSA_Conv(nn.Module):
    def __init__(self, dim, num_heads=4, spike_mode="lif", layer=0):
        super().__init__()
        self.dim, self.num_heads, self.layer = dim, num_heads, layer
        for name in "qkv":
            setattr(self, f"{name}_conv", nn.Conv2d(dim, dim, kernel_size=1, stride=1, bias=False))
            setattr(self, f"{name}_bn", nn.BatchNorm2d(dim))
            setattr(self, f"{name}_lif", _lif(spike_mode))
        self.talking_heads_lif = _lif(spike_mode, v_threshold=0.5)
        self.proj_conv = nn.Conv2d(dim, dim, kernel_size=1, stride=1)
        self.proj_bn = nn.BatchNorm2d(dim)
        self.shortcut_lif = _lif(spike_mode)

    def forward(self, x, hook=None):
        T, B, C, H, W = x.shape
        identity, N = x, H * W
        x = self.shortcut_lif(x)
        flat, parts = x.flatten(0, 1), []
        for name in "qkv":
            out = getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(flat)).reshape(T, B, C, H, W).contiguous()
            out = getattr(self, f"{name}_lif")(out)
            if hook is not None:
                hook[self._get_name() + str(self.layer) + f"_{name}_lif"] = out.detach()
            out = out.flatten(3).transpose(-1, -2)
            parts.append(out.reshape(T, B, N, self.num_heads, C // self.num_heads).permute(0, 1, 3, 2, 4).contiguous())
        q, k, v = parts
        kv = k.mul(v).sum(dim=-2, keepdim=True)
        kv = self.talking_heads_lif(kv)
        x = q.mul(kv)
        x = x.transpose(3, 4).reshape(T, B, C, H, W).contiguous()
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W).contiguous()
        return x + identity, hook


class MS_Block_Conv(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio, spike_mode="lif", layer=0):
        super().__init__()
        self.attn = MS_SSA_Conv(dim, num_heads, spike_mode, layer)
        self.mlp = MS_MLP_Conv(dim, int(dim * mlp_ratio), spike_mode, layer)

    def forward(self, x, hook=None):
        x_attn, hook = self.attn(x, hook=hook)
        return self.mlp(x_attn, hook=hook)


class SpikeDrivenTransformer(nn.Module):
    def __init__(self, num_classes=10, embed_dims=32, num_heads=4, mlp_ratios=2, depths=2, T=4, spike_mode="lif"):
        super().__init__()
        self.T = T
        self.patch_embed = MS_SPS(3, embed_dims, spike_mode)
        self.block = nn.ModuleList([MS_Block_Conv(embed_dims, num_heads, mlp_ratios, spike_mode, layer=j)
                                    for j in range(depths)])
        self.head_lif = _lif(spike_mode)
        self.head = nn.Linear(embed_dims, num_classes)

    def forward(self, x, hook=None):
        if len(x.shape) < 5:
            x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        else:
            x = x.transpose(0, 1).contiguous()
        x, _, hook = self.patch_embed(x, hook=hook)
        for blk in self.block:
            x, hook = blk(x, hook=hook)
        x = x.flatten(3).mean(3)
        x = self.head_lif(x)
        if hook is not None:
            hook["head_lif"] = x.detach()
        return self.head(x).mean(0), hook
