"""In the style of snnTorch's tutorial 7: events as frames [time, batch, 2, H, W], from a DataLoader with workers."""
import sys

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Events(Dataset):
    """Sparse frames; a class fires in its own rows."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        random = torch.Generator().manual_seed(index)
        label = index % 10
        frames = (torch.rand(10 + index % 3, 2, 12, 12, generator=random) < 0.05).float()
        frames[:, :, label] += (torch.rand(frames.shape[0], 2, 12, generator=random) < 0.6).float()
        return frames, label


def pad(batch):
    frames = nn.utils.rnn.pad_sequence([x for x, _ in batch])
    return frames, torch.tensor([label for _, label in batch])


if __name__ == "__main__":
    torch.manual_seed(0)
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    loader = DataLoader(Events(), batch_size=16, shuffle=True, collate_fn=pad, num_workers=workers,
                        multiprocessing_context="fork" if workers else None)
    grad = surrogate.atan()
    net = nn.Sequential(
        nn.Conv2d(2, 6, 5), nn.MaxPool2d(2), snn.Leaky(beta=0.5, spike_grad=grad, init_hidden=True),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 10),
        snn.Leaky(beta=0.5, spike_grad=grad, init_hidden=True, output=True))

    def forward_pass(net, data):
        spk_rec = []
        utils.reset(net)
        for step in range(data.size(0)):
            spk_out, _ = net(data[step])
            spk_rec.append(spk_out)
        return torch.stack(spk_rec)

    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.9, 0.999))
    loss_fn = SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    for _epoch in range(2):
        for data, targets in loader:
            net.train()
            spk_rec = forward_pass(net, data)
            loss_val = loss_fn(spk_rec, targets)
            optimizer.zero_grad()
            loss_val.backward()
            optimizer.step()
            print(f"loss {loss_val.item()!r} spikes {int(spk_rec.sum())}")
