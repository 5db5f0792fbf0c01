"""What the snnTorch adapter says of the release it runs on; what it computes there is in tests/snntorch."""
from __future__ import annotations

import snntorch as snn
import torch
from snntorch import utils

from snntorch_memext import _host, retrofit


def test_the_release_is_one_that_is_tested(monkeypatch):
    assert snn.__version__ in _host.TESTED and _host.why_untested() is None
    for other in ("0.9.1", "0.10.0", "1.1.0"):
        monkeypatch.setattr(snn, "__version__", other)
        assert f"snnTorch {other} is installed" in _host.why_untested()
        assert "0.9.4 and 1.0.0" in _host.why_untested()


def test_a_net_trains_as_without_us():
    def losses(change):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 9), snn.Leaky(0.8, threshold=0.5, init_hidden=True),
                                  torch.nn.Linear(9, 3), snn.Leaky(0.7, threshold=0.4, init_hidden=True, output=True))
        net = change(net)
        optimizer, found = torch.optim.SGD(net.parameters(), 0.1), []
        for _ in range(3):
            utils.reset(net)
            out = torch.stack([net(x)[0] for x in torch.rand(5, 4, 6)])
            loss = (out.mean(0) - torch.eye(4, 3)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    plain = losses(lambda net: net)
    assert torch.allclose(losses(retrofit), plain, rtol=1e-5)  # float32 gradients, three steps of an optimizer
    assert plain.unique().numel() == 3
