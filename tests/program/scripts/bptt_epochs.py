"""snnTorch's own training epochs, snntorch.backprop.BPTT, on a population code."""
import snntorch as snn
import torch
from snntorch import backprop, surrogate
from snntorch import functional as SF
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
grad = surrogate.fast_sigmoid(slope=75)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), snn.Leaky(beta=0.9, spike_grad=grad, init_hidden=True),
                    nn.Linear(48, 40), snn.Leaky(beta=0.9, spike_grad=grad, init_hidden=True, output=True))
loader = DataLoader(TensorDataset(torch.rand(48, 1, 8, 8) * 2, torch.randint(10, (48,))), batch_size=16, shuffle=True)
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.999))
loss_fn = SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0, population_code=True, num_classes=10)
for _ in range(2):
    avg_loss = backprop.BPTT(net, loader, num_steps=20, optimizer=optimizer, criterion=loss_fn, time_var=False,
                             device="cpu")
    print(f"loss {float(avg_loss)!r}")
