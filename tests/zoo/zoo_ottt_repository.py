"""OTTT's VGG with neurons that belong to its repository alone (its own copy of a node, no class of SpikingJelly):
one step per call, a trace kept beside the membrane, the weights' gradient taken with the trace.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["OnlineSpikingVGG"]


class SpikeAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad_output):
        s = torch.sigmoid(4.0 * ctx.saved_tensors[0])
        return grad_output * 4.0 * s * (1 - s)


class Replace(torch.autograd.Function):
    """The value of the second, the gradient of the first."""

    @staticmethod
    def forward(ctx, z1, z1_r):
        return z1_r

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class WrapedSNNOp(nn.Module):
    """A layer on spikes whose weights get their gradient from the trace: [spikes, trace] side by side in the batch."""

    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        B = x.shape[0] // 2
        spike, rate = x[:B], x[B:]
        with torch.no_grad():
            out = self.op(spike).detach()
        in_for_grad = Replace.apply(spike, rate)
        return Replace.apply(self.op(in_for_grad), out)


class OnlineLIFNode(nn.Module):
    def __init__(self, tau=2.0, v_threshold=1.0):
        super().__init__()
        self.tau, self.v_threshold = tau, v_threshold
        self.v = self.rate_tracking = None

    def forward(self, x, init=False, wrapped=True):
        if init:
            self.v, self.rate_tracking = torch.zeros_like(x), None
        self.v = self.v.detach() * (1 - 1.0 / self.tau) + x
        spike = SpikeAct.apply(self.v - self.v_threshold)
        self.v = self.v - spike.detach() * self.v_threshold
        with torch.no_grad():
            if self.rate_tracking is None:
                self.rate_tracking = spike.clone()
            else:
                self.rate_tracking = self.rate_tracking * (1 - 1.0 / self.tau) + spike
        return torch.cat((spike, self.rate_tracking), dim=0) if wrapped else spike


class ScaledWSConv2d(nn.Conv2d):
    def get_weight(self):
        fan_in = self.weight[0].numel()
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        var = self.weight.var(dim=(1, 2, 3), keepdim=True)
        return 2.74 * (self.weight - mean) / torch.sqrt(var * fan_in + 1e-4)

    def forward(self, x):
        return F.conv2d(x, self.get_weight(), self.bias, self.stride, self.padding)


class OnlineSpikingVGG(nn.Module):
    def __init__(self, widths=(16, 32, 32), num_classes=10):
        super().__init__()
        first, *rest = widths
        self.conv0, self.lif0 = ScaledWSConv2d(3, first, 3, padding=1), OnlineLIFNode()
        self.pool = nn.AvgPool2d(2, 2)
        convs, lifs = [], []
        for a, b in zip(widths, rest):
            convs.append(WrapedSNNOp(ScaledWSConv2d(a, b, 3, padding=1)))
            lifs.append(OnlineLIFNode())
        self.convs, self.lifs = nn.ModuleList(convs), nn.ModuleList(lifs)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x, init=False):
        x = self.lif0(self.conv0(x), init)
        for i, (conv, lif) in enumerate(zip(self.convs, self.lifs)):
            last = i == len(self.convs) - 1
            x = lif(conv(self.pool(x)), init, wrapped=not last)
        return self.classifier(self.avgpool(x).flatten(1))
