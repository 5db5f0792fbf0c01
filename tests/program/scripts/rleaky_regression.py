"""In the style of snnTorch's regression tutorial 2: recurrent neurons, a regression on the membrane of the last one."""
import snntorch as snn
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden=32, timesteps=12):
        super().__init__()
        self.timesteps = timesteps
        self.fc_in = nn.Linear(1, hidden)
        self.rlif = snn.RLeaky(beta=0.9, linear_features=hidden, learn_beta=True)
        self.fc_hidden = nn.Linear(hidden, hidden)
        self.lif = snn.Leaky(beta=0.8, learn_beta=True)
        self.fc_out = nn.Linear(hidden, 1)
        self.out = snn.Leaky(beta=0.7, reset_mechanism="none")

    def forward(self, x):
        spk1, mem1 = self.rlif.init_rleaky()
        mem2 = self.lif.init_leaky()
        mem3 = self.out.init_leaky()
        rec = []
        for step in range(self.timesteps):
            spk1, mem1 = self.rlif(self.fc_in(x[step]), spk1, mem1)
            spk2, mem2 = self.lif(self.fc_hidden(spk1), mem2)
            _, mem3 = self.out(self.fc_out(spk2), mem3)
            rec.append(mem3)
        return torch.stack(rec, dim=0)


torch.manual_seed(0)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
loss_function = nn.MSELoss()
for _ in range(4):
    feature = torch.rand(12, 8, 1) * 4
    label = torch.cumsum(feature, 0) / 12
    mem = net(feature)
    loss = loss_function(mem, label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item()!r}")
