"""In the style of snnTorch's tutorial 6: a convolutional nn.Sequential that hides its states, stepped by a function."""
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import nn

torch.manual_seed(0)
spike_grad = surrogate.fast_sigmoid(slope=25)
net = nn.Sequential(
    nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), snn.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True),
    nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), snn.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True),
    nn.Flatten(), nn.Linear(8 * 2 * 2, 10),
    snn.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True, output=True))
with torch.no_grad():
    for layer in net:
        if hasattr(layer, "weight"):
            layer.weight.mul_(3)  # so that neurons fire from the start


def forward_pass(net, num_steps, data):
    mem_rec, spk_rec = [], []
    utils.reset(net)
    for _ in range(num_steps):
        spk_out, mem_out = net(data)
        spk_rec.append(spk_out)
        mem_rec.append(mem_out)
    return torch.stack(spk_rec), torch.stack(mem_rec)


optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.999))
loss_fn = SF.ce_rate_loss()
for _ in range(4):
    data, targets = torch.rand(16, 1, 16, 16) * 2, torch.randint(10, (16,))
    net.train()
    spk_rec, _ = forward_pass(net, 12, data)
    loss_val = loss_fn(spk_rec, targets)
    optimizer.zero_grad()
    loss_val.backward()
    optimizer.step()
    print(f"loss {loss_val.item()!r} spikes {int(spk_rec.sum())}")
