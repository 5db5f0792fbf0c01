"""Spikformer, as its repository writes it: `clock_driven`, MultiStepLIFNode, flatten(0, 1) around every layer."""
import torch.nn as nn
from spikingjelly.clock_driven.neuron import MultiStepLIFNode

__all__ = ["Spikformer", "spikformer"]


class SPS(nn.Module):
    """Spiking patch splitting: four convolutions, the last two followed by a pooling, and a position embedding."""

    def __init__(self, img_size=16, in_channels=3, embed_dims=64):
        super().__init__()
        self.img_size = img_size
        widths = [in_channels, embed_dims // 4, embed_dims // 2, embed_dims]
        for i in range(3):
            a, b = widths[i], widths[i + 1]
            setattr(self, f"proj_conv{i}", nn.Conv2d(a, b, 3, 1, 1, bias=False))
            setattr(self, f"proj_bn{i}", nn.BatchNorm2d(b))
            setattr(self, f"proj_lif{i}", MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"))
        self.maxpool1 = nn.MaxPool2d(3, 2, 1, dilation=1, ceil_mode=False)
        self.maxpool2 = nn.MaxPool2d(3, 2, 1, dilation=1, ceil_mode=False)
        self.rpe_conv = nn.Conv2d(embed_dims, embed_dims, 3, 1, 1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(embed_dims)
        self.rpe_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.proj_conv0(x.flatten(0, 1))
        x = self.proj_bn0(x).reshape(T, B, -1, H, W).contiguous()
        x = self.proj_lif0(x).flatten(0, 1).contiguous()

        x = self.proj_conv1(x)
        x = self.proj_bn1(x).reshape(T, B, -1, H, W).contiguous()
        x = self.proj_lif1(x).flatten(0, 1).contiguous()
        x = self.maxpool1(x)

        x = self.proj_conv2(x)
        x = self.proj_bn2(x).reshape(T, B, -1, H // 2, W // 2).contiguous()
        x = self.proj_lif2(x).flatten(0, 1).contiguous()
        x = self.maxpool2(x)

        x_feat = x.reshape(T, B, -1, H // 4, W // 4).contiguous()
        x = self.rpe_bn(self.rpe_conv(x)).reshape(T, B, -1, H // 4, W // 4).contiguous()
        x = self.rpe_lif(x) + x_feat
        return x.flatten(-2).transpose(-1, -2)  # T, B, N, C


class SSA(nn.Module):
    """Spiking self-attention, without softmax."""

    def __init__(self, dim, num_heads=4):
        super().__init__()
        assert dim % num_heads == 0
        self.dim, self.num_heads, self.scale = dim, num_heads, 0.125
        for name in "qkv":
            setattr(self, f"{name}_linear", nn.Linear(dim, dim))
            setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
            setattr(self, f"{name}_lif", MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"))
        self.attn_lif = MultiStepLIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, backend="cupy")
        self.proj_linear = nn.Linear(dim, dim)
        self.proj_bn = nn.BatchNorm1d(dim)
        self.proj_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")

    def heads(self, name, x):
        T, B, N, C = x.shape
        out = getattr(self, f"{name}_linear")(x.flatten(0, 1))
        out = getattr(self, f"{name}_bn")(out.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
        out = getattr(self, f"{name}_lif")(out)
        return out.reshape(T, B, N, self.num_heads, C // self.num_heads).permute(0, 1, 3, 2, 4).contiguous()

    def forward(self, x):
        T, B, N, C = x.shape
        q, k, v = self.heads("q", x), self.heads("k", x), self.heads("v", x)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        x = attn @ v
        x = x.transpose(2, 3).reshape(T, B, N, C).contiguous()
        x = self.attn_lif(x)
        x = self.proj_linear(x.flatten(0, 1))
        x = self.proj_bn(x.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C)
        return self.proj_lif(x)


class MLP(nn.Module):
    def __init__(self, in_features, hidden_features):
        super().__init__()
        self.fc1_linear = nn.Linear(in_features, hidden_features)
        self.fc1_bn = nn.BatchNorm1d(hidden_features)
        self.fc1_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.fc2_linear = nn.Linear(hidden_features, in_features)
        self.fc2_bn = nn.BatchNorm1d(in_features)
        self.fc2_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.c_hidden = hidden_features

    def forward(self, x):
        T, B, N, C = x.shape
        x = self.fc1_linear(x.flatten(0, 1))
        x = self.fc1_bn(x.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, self.c_hidden).contiguous()
        x = self.fc1_lif(x)
        x = self.fc2_linear(x.flatten(0, 1))
        x = self.fc2_bn(x.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
        return self.fc2_lif(x)


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio):
        super().__init__()
        self.attn = SSA(dim, num_heads=num_heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class Spikformer(nn.Module):
    def __init__(self, img_size=16, num_classes=10, embed_dims=64, num_heads=4, mlp_ratios=2, depths=2, T=4):
        super().__init__()
        self.T = T
        self.patch_embed = SPS(img_size, 3, embed_dims)
        self.block = nn.ModuleList([Block(embed_dims, num_heads, mlp_ratios) for _ in range(depths)])
        self.head = nn.Linear(embed_dims, num_classes)
        self.apply(self._init_weights)

    def _init_weights(self, m):
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.constant_(m.bias, 0)

    def forward_features(self, x):
        x = self.patch_embed(x)
        for blk in self.block:
            x = blk(x)
        return x.mean(2)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.forward_features(x)
        return self.head(x.mean(0))


def spikformer(**kwargs):
    return Spikformer(**kwargs)
