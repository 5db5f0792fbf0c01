"""QKFormer, as its repository writes it: stages, token attention (the spikes of q, summed over channels, mask k), and
patch embeddings with a residual branch.
"""
import torch.nn as nn
from spikingjelly.clock_driven.neuron import MultiStepLIFNode

__all__ = ["QKFormer"]


class Token_QK_Attention(nn.Module):
    def __init__(self, dim, num_heads=4):
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.q_conv = nn.Conv1d(dim, dim, kernel_size=1, stride=1, bias=False)
        self.q_bn = nn.BatchNorm1d(dim)
        self.q_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.k_conv = nn.Conv1d(dim, dim, kernel_size=1, stride=1, bias=False)
        self.k_bn = nn.BatchNorm1d(dim)
        self.k_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.attn_lif = MultiStepLIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, backend="cupy")
        self.proj_conv = nn.Conv1d(dim, dim, kernel_size=1, stride=1)
        self.proj_bn = nn.BatchNorm1d(dim)
        self.proj_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = x.flatten(3)
        T, B, C, N = x.shape
        x_for_qkv = x.flatten(0, 1)
        q = self.q_bn(self.q_conv(x_for_qkv)).reshape(T, B, C, N)
        q = self.q_lif(q).unsqueeze(2).reshape(T, B, self.num_heads, C // self.num_heads, N)
        k = self.k_bn(self.k_conv(x_for_qkv)).reshape(T, B, C, N)
        k = self.k_lif(k).unsqueeze(2).reshape(T, B, self.num_heads, C // self.num_heads, N)
        q = q.sum(dim=3, keepdim=True)
        attn = self.attn_lif(q)
        x = attn.mul(k)
        x = x.flatten(2, 3)
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W)
        return self.proj_lif(x)


class MLP(nn.Module):
    def __init__(self, in_features, hidden_features):
        super().__init__()
        self.mlp1_conv = nn.Conv2d(in_features, hidden_features, kernel_size=1, stride=1)
        self.mlp1_bn = nn.BatchNorm2d(hidden_features)
        self.mlp1_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.mlp2_conv = nn.Conv2d(hidden_features, in_features, kernel_size=1, stride=1)
        self.mlp2_bn = nn.BatchNorm2d(in_features)
        self.mlp2_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.c_hidden, self.c_output = hidden_features, in_features

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.mlp1_bn(self.mlp1_conv(x.flatten(0, 1))).reshape(T, B, self.c_hidden, H, W)
        x = self.mlp1_lif(x)
        x = self.mlp2_bn(self.mlp2_conv(x.flatten(0, 1))).reshape(T, B, self.c_output, H, W)
        return self.mlp2_lif(x)


class TokenSpikingTransformer(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio):
        super().__init__()
        self.tssa = Token_QK_Attention(dim, num_heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.tssa(x)
        return x + self.mlp(x)


class PatchEmbedInit(nn.Module):
    def __init__(self, in_channels=3, embed_dims=32):
        super().__init__()
        self.proj_conv = nn.Conv2d(in_channels, embed_dims // 2, 3, 1, 1, bias=False)
        self.proj_bn = nn.BatchNorm2d(embed_dims // 2)
        self.proj_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.proj1_conv = nn.Conv2d(embed_dims // 2, embed_dims, 3, 1, 1, bias=False)
        self.proj1_bn = nn.BatchNorm2d(embed_dims)
        self.proj1_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.proj_res_conv = nn.Conv2d(embed_dims // 2, embed_dims, kernel_size=1, stride=1, bias=False)
        self.proj_res_bn = nn.BatchNorm2d(embed_dims)
        self.proj_res_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, -1, H, W)
        x = self.proj_lif(x).flatten(0, 1)
        x_feat = x
        x = self.proj1_bn(self.proj1_conv(x)).reshape(T, B, -1, H, W)
        x = self.proj1_lif(x)
        x_feat = self.proj_res_bn(self.proj_res_conv(x_feat)).reshape(T, B, -1, H, W).contiguous()
        return x + self.proj_res_lif(x_feat)


class PatchEmbeddingStage(nn.Module):
    def __init__(self, in_dims, embed_dims):
        super().__init__()
        self.proj_conv = nn.Conv2d(in_dims, embed_dims, 3, 1, 1, bias=False)
        self.proj_bn = nn.BatchNorm2d(embed_dims)
        self.proj_maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)
        self.proj_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.proj_res_conv = nn.Conv2d(in_dims, embed_dims, kernel_size=1, stride=2, bias=False)
        self.proj_res_bn = nn.BatchNorm2d(embed_dims)
        self.proj_res_lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = x.flatten(0, 1).contiguous()
        x_feat = x
        x = self.proj_maxpool(self.proj_bn(self.proj_conv(x)))
        x = self.proj_lif(x.reshape(T, B, -1, H // 2, W // 2).contiguous())
        x_feat = self.proj_res_bn(self.proj_res_conv(x_feat)).reshape(T, B, -1, H // 2, W // 2).contiguous()
        return x + self.proj_res_lif(x_feat)


class QKFormer(nn.Module):
    def __init__(self, num_classes=10, embed_dims=32, num_heads=4, mlp_ratios=2, T=4):
        super().__init__()
        self.T = T
        self.patch_embed1 = PatchEmbedInit(3, embed_dims // 2)
        self.stage1 = nn.ModuleList([TokenSpikingTransformer(embed_dims // 2, num_heads, mlp_ratios)])
        self.patch_embed2 = PatchEmbeddingStage(embed_dims // 2, embed_dims)
        self.stage2 = nn.ModuleList([TokenSpikingTransformer(embed_dims, num_heads, mlp_ratios)])
        self.head = nn.Linear(embed_dims, num_classes)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.patch_embed1(x)
        for blk in self.stage1:
            x = blk(x)
        x = self.patch_embed2(x)
        for blk in self.stage2:
            x = blk(x)
        x = x.flatten(3).mean(3)
        return self.head(x.mean(0))
