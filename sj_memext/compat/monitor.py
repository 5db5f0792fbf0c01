"""spikingjelly.clock_driven.monitor of 0.0.0.0.12: firing rates and silent neurons of a net, by module."""
from __future__ import annotations

import torch
from torch import nn

from shared_core.errors import MemextError
from sj_memext._host import neuron as host

__all__ = ["Monitor"]


class Monitor:
    """Counts the spikes of every neuron module of `net` while enabled.

    backend: "torch" or "numpy", which decides the type of what is returned.  device: where it counts.
    As in 0.0.0.0.12 the counts stand on the modules themselves: neuron_cnt, fire_mask, firing_time, cnt. 2.0.0's
    monitors (activation_based.monitor.OutputMonitor) record whole outputs instead.
    """

    def __init__(self, net: nn.Module, device: str | torch.device | None = None, backend: str = "numpy"):
        if backend not in ("torch", "numpy"):
            raise MemextError(f"Monitor: backend is {backend!r}; allowed: 'torch', 'numpy'")
        self.net, self.backend = net, backend
        self.device = torch.device("cpu" if device is None or backend == "numpy" else device)
        self.module_dict = {name: module for name, module in net.named_modules() if isinstance(module, host.BaseNode)}

    def enable(self) -> None:
        """Counts from now on."""
        self.neuron_cnt = dict.fromkeys(self.module_dict)
        self.handle = {name: module.register_forward_hook(self.forward_hook)
                       for name, module in self.module_dict.items()}
        for module in self.module_dict.values():
            module.neuron_cnt = None
        self.reset()

    def disable(self) -> None:
        """Counts no more, and leaves nothing on the modules."""
        for name, module in self.module_dict.items():
            self.handle[name].remove()
            for attribute in ("neuron_cnt", "fire_mask", "firing_time", "cnt"):
                delattr(module, attribute)

    def reset(self) -> None:
        """Forgets what was counted."""
        for module in self.module_dict.values():
            module.fire_mask, module.firing_time, module.cnt = False, 0, 0

    @torch.no_grad()
    def forward_hook(self, module: nn.Module, inputs, output: torch.Tensor) -> None:
        """output: [N, *], or [T, N, *] of a multi-step node, whose steps count as examples."""
        data = output.detach().to(self.device)
        if module.step_mode == "m":
            data = data.flatten(0, 1)
        fired = (data.sum(0) > 0)
        count = data.sum()
        if self.backend == "numpy":
            fired, count = fired.numpy(), count.item()
        if module.neuron_cnt is None:
            module.neuron_cnt = data[0].numel()
        module.firing_time = module.firing_time + count
        module.cnt += data.numel()
        module.fire_mask = fired | module.fire_mask

    def get_avg_firing_rate(self, all: bool = True, module_name: str | None = None):
        """Spikes per neuron and step, of all modules together or of one."""
        chosen = self._chosen(all, module_name)
        return sum(m.firing_time for m in chosen) / sum(m.cnt for m in chosen)

    def get_nonfire_ratio(self, all: bool = True, module_name: str | None = None):
        """Share of the neurons that have not fired since the last reset."""
        chosen = self._chosen(all, module_name)
        return sum((m.fire_mask == 0).sum() for m in chosen) / sum(m.neuron_cnt for m in chosen)

    def _chosen(self, everything: bool, name: str | None) -> list[nn.Module]:
        if everything:
            return list(self.module_dict.values())
        if name not in self.module_dict:
            raise MemextError(f"Monitor: module_name is {name!r}; the neurons of this net are: "
                              f"{', '.join(self.module_dict) or 'none'}")
        return [self.module_dict[name]]
