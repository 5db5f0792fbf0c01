"""In the style of snnTorch's tutorial 5: a class whose forward loops over time and hands the states around."""
import sys

import snntorch as snn
import torch
from torch import nn

num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 25


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 40)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(40, 10)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for _step in range(num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


torch.manual_seed(0)
net = Net()
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.9, 0.999))
for _ in range(4):
    data, targets = torch.rand(16, 8, 8) * 2, torch.randint(10, (16,))
    net.train()
    spk_rec, mem_rec = net(data.view(16, -1))
    loss_val = torch.zeros(1)
    for step in range(num_steps):
        loss_val += loss_fn(mem_rec[step], targets)
    optimizer.zero_grad()
    loss_val.backward()
    optimizer.step()
    print(f"loss {loss_val.item()!r} spikes {int(spk_rec.sum())}")
