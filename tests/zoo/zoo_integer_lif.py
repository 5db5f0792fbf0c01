"""A detector's backbone as SpikeYOLO's repository writes it: `MultiSpike4`, whose neurons emit 0 to 4 while they are
trained (a rounding with a straight-through gradient), and the same hand-written `mem_update`.
"""
import torch
import torch.nn as nn

__all__ = ["SpikeBackbone"]


class MultiSpike4(nn.Module):
    class quant4(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            ctx.save_for_backward(input)
            return torch.round(torch.clamp(input, min=0, max=4))

        @staticmethod
        def backward(ctx, grad_output):
            input, = ctx.saved_tensors
            grad_input = grad_output.clone()
            grad_input[input < 0] = 0
            grad_input[input > 4] = 0
            return grad_input

    def forward(self, x):
        return self.quant4.apply(x)


class mem_update(nn.Module):
    def __init__(self, decay=0.25):
        super().__init__()
        self.decay, self.qtrick = decay, MultiSpike4()

    def forward(self, x):
        spike = torch.zeros_like(x[0])
        output = torch.zeros_like(x)
        mem_old = 0
        for i in range(x.shape[0]):
            mem = (mem_old - spike.detach()) * self.decay + x[i] if i >= 1 else x[i]
            spike = self.qtrick(mem)
            mem_old = mem.clone()
            output[i] = spike
        return output


class MS_StandardConv(nn.Module):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.lif = mem_update()

    def forward(self, x):
        T, B = x.shape[:2]
        x = self.bn(self.conv(self.lif(x).flatten(0, 1)))
        return x.reshape(T, B, *x.shape[1:])


class SpikeBackbone(nn.Module):
    def __init__(self, width=16, depth=3, num_classes=10, T=4):
        super().__init__()
        self.T = T
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList([MS_StandardConv(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.stem(x).unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((0, 3, 4)))
