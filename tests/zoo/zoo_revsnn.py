"""A reversible spiking ResNet as RevSNN's repository writes it: an autograd Function that keeps the output of a
sequence of blocks, and rebuilds their inputs, with the neurons reset between, on the way back.
"""
import torch
import torch.nn as nn
from spikingjelly.clock_driven import functional, layer, surrogate
from spikingjelly.clock_driven.neuron import MultiStepIFNode

__all__ = ["revs_resnet"]


class ReversibleBlock(nn.Module):
    """y1 = x1 + F(x2), y2 = x2 + G(y1), on the halves of the channels of [T, B, C, H, W]."""

    def __init__(self, f_block, g_block, split_along_dim=2):
        super().__init__()
        self.f_block, self.g_block, self.split_along_dim = f_block, g_block, split_along_dim

    def forward(self, x):
        x1, x2 = torch.chunk(x, 2, dim=self.split_along_dim)
        with torch.no_grad():
            y1 = x1 + self.f_block(x2)
            y2 = x2 + self.g_block(y1)
        return torch.cat([y1, y2], dim=self.split_along_dim)

    def backward_pass(self, y, dy):
        y1, y2 = torch.chunk(y, 2, dim=self.split_along_dim)
        dy1, dy2 = torch.chunk(dy, 2, dim=self.split_along_dim)
        functional.reset_net(self)
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            gy1 = self.g_block(y1)
        gy1.backward(dy2)
        with torch.no_grad():
            x2 = y2 - gy1
            dx1 = dy1 + y1.grad
        with torch.enable_grad():
            x2 = x2.detach().requires_grad_()
            fx2 = self.f_block(x2)
        fx2.backward(dx1)
        with torch.no_grad():
            x1 = y1 - fx2
            dx2 = dy2 + x2.grad
        functional.reset_net(self)
        return torch.cat([x1, x2.detach()], self.split_along_dim), torch.cat([dx1, dx2], self.split_along_dim)


class _ReversibleModuleFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, reversible_blocks):
        for block in reversible_blocks:
            x = block(x)
        ctx.y = x.detach()
        ctx.reversible_blocks = reversible_blocks
        functional.reset_net(reversible_blocks)
        return x

    @staticmethod
    def backward(ctx, dy):
        y = ctx.y
        del ctx.y
        for block in reversed(ctx.reversible_blocks):
            y, dy = block.backward_pass(y, dy)
        return dy, None


class ReversibleSequence(nn.Module):
    def __init__(self, reversible_blocks):
        super().__init__()
        self.reversible_blocks = reversible_blocks

    def forward(self, x):
        return _ReversibleModuleFunction.apply(x, self.reversible_blocks)


def conv_branch(channels):
    return nn.Sequential(MultiStepIFNode(surrogate_function=surrogate.ATan(), detach_reset=True, backend="cupy"),
                         layer.SeqToANNContainer(nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                                                 nn.BatchNorm2d(channels)))


def stage(channels, number):
    return ReversibleSequence(nn.ModuleList([ReversibleBlock(conv_branch(channels // 2), conv_branch(channels // 2))
                                             for _ in range(number)]))


class RevSResNet(nn.Module):
    def __init__(self, channels=(16, 32), blocks=(2, 2), num_classes=10, T=4):
        super().__init__()
        self.T = T
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.stage1 = stage(channels[0], blocks[0])
        self.down = nn.Sequential(
            MultiStepIFNode(surrogate_function=surrogate.ATan(), detach_reset=True, backend="cupy"),
            layer.SeqToANNContainer(nn.Conv2d(channels[0], channels[1], 3, 2, 1, bias=False),
                                    nn.BatchNorm2d(channels[1])))
        self.stage2 = stage(channels[1], blocks[1])
        self.sn = MultiStepIFNode(surrogate_function=surrogate.ATan(), detach_reset=True, backend="cupy")
        self.avgpool = layer.SeqToANNContainer(nn.AdaptiveAvgPool2d((1, 1)))
        self.fc = nn.Linear(channels[1], num_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.stage1(x)
        x = self.down(x)
        x = self.stage2(x)
        x = self.avgpool(self.sn(x)).flatten(2)
        return self.fc(x.mean(0))


def revs_resnet(**kwargs):
    return RevSResNet(**kwargs)
