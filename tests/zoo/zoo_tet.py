"""A VGG as the repository of temporal efficient training (TET) writes it: `LIFSpike` over [N, T, ...], layers that
merge batch and time, one output per step and a loss over all of them. No class of SpikingJelly.
"""
import torch
import torch.nn as nn

__all__ = ["VGGSNN"]


class ZIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, gama):
        ctx.save_for_backward(input, torch.tensor([gama]))
        return (input > 0).float()

    @staticmethod
    def backward(ctx, grad_output):
        input, gama = ctx.saved_tensors
        gama = gama.item()
        return grad_output * (1 / gama) * (1 / gama) * (gama - input.abs()).clamp(min=0), None


class LIFSpike(nn.Module):
    def __init__(self, thresh=1.0, tau=0.5, gama=1.0):
        super().__init__()
        self.act, self.thresh, self.tau, self.gama = ZIF.apply, thresh, tau, gama

    def forward(self, x):
        mem, spike_pot = 0, []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t, ...]
            spike = self.act(mem - self.thresh, self.gama)
            mem = (1 - spike) * mem
            spike_pot.append(spike)
        return torch.stack(spike_pot, dim=1)


class SeqToANNContainer(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.module = nn.Sequential(*args)

    def forward(self, x_seq):
        y_shape = [x_seq.shape[0], x_seq.shape[1]]
        y_seq = self.module(x_seq.flatten(0, 1).contiguous())
        y_shape.extend(y_seq.shape[1:])
        return y_seq.view(y_shape)


class Layer(nn.Module):
    def __init__(self, in_plane, out_plane):
        super().__init__()
        self.fwd = SeqToANNContainer(nn.Conv2d(in_plane, out_plane, 3, 1, 1), nn.BatchNorm2d(out_plane))
        self.act = LIFSpike()

    def forward(self, x):
        return self.act(self.fwd(x))


class VGGSNN(nn.Module):
    def __init__(self, width=16, num_classes=10, size=16):
        super().__init__()
        self.features = nn.Sequential(Layer(2, width), Layer(width, width), SeqToANNContainer(nn.AvgPool2d(2)),
                                      Layer(width, 2 * width), SeqToANNContainer(nn.AvgPool2d(2)))
        self.classifier = nn.Sequential(SeqToANNContainer(nn.Linear(2 * width * (size // 4) ** 2, num_classes)))

    def forward(self, input):
        x = self.features(input)
        return self.classifier(torch.flatten(x, 2))  # [N, T, classes]
