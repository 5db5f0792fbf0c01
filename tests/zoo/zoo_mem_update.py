"""MS-ResNet as its repository writes it, with no class of SpikingJelly: neurons are a loop in `mem_update` that holds
the membrane in a local variable and writes `output[i] = spike`; convolutions and norms take [T, N, C, H, W].
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["MSResNet"]

thresh, lens, decay, time_window = 0.5, 0.5, 0.25, 4


class ActFun(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return input.gt(thresh).float()

    @staticmethod
    def backward(ctx, grad_output):
        input, = ctx.saved_tensors
        grad_input = grad_output.clone()
        temp = abs(input - thresh) < lens
        return grad_input * temp.float() / (2 * lens)


act_fun = ActFun.apply


class mem_update(nn.Module):
    def forward(self, x):
        output = torch.zeros_like(x)
        mem_old = 0
        for i in range(x.shape[0]):
            if i >= 1:
                mem = mem_old * decay * (1 - spike.detach()) + x[i]  # noqa: F821
            else:
                mem = x[i]
            spike = act_fun(mem)
            mem_old = mem.clone()
            output[i] = spike
        return output


class Snn_Conv2d(nn.Conv2d):
    def forward(self, input):
        T, N = input.shape[:2]
        out = F.conv2d(input.flatten(0, 1), self.weight, self.bias, self.stride, self.padding, self.dilation,
                       self.groups)
        return out.view(T, N, *out.shape[1:])


class batch_norm_2d(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.bn = nn.BatchNorm3d(num_features)

    def forward(self, input):
        return self.bn(input.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4).contiguous()


class BasicBlock(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.residual_function = nn.Sequential(
            mem_update(), Snn_Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            batch_norm_2d(out_channels),
            mem_update(), Snn_Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            batch_norm_2d(out_channels))
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(Snn_Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                                          batch_norm_2d(out_channels))

    def forward(self, x):
        return self.residual_function(x) + self.shortcut(x)


class MSResNet(nn.Module):
    def __init__(self, channels=(16, 32), blocks=(2, 1), num_classes=10):
        super().__init__()
        self.conv1 = nn.Sequential(Snn_Conv2d(3, channels[0], 3, padding=1, bias=False), batch_norm_2d(channels[0]))
        layers, in_channels = [], channels[0]
        for i, (width, number) in enumerate(zip(channels, blocks)):
            for j in range(number):
                layers.append(BasicBlock(in_channels, width, 2 if i and not j else 1))
                in_channels = width
        self.layers = nn.ModuleList(layers)
        self.mem_update = mem_update()
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x):
        input = torch.zeros(time_window, *x.shape, device=x.device)
        for i in range(time_window):
            input[i] = x
        output = self.conv1(input)
        for block in self.layers:
            output = block(output)
        output = self.mem_update(output)
        output = F.adaptive_avg_pool3d(output, (None, 1, 1)).flatten(2)
        return self.fc(output.mean(0))
