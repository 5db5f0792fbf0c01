"""How often neurons fire, with and without shared membranes: EfficientLIF-Net Fig. 7."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import MemextError
from ..lif_memory import sharing_of
from ..report import text_table
from ..temporal._hosts import hosts
from ._share import Sharer

__all__ = ["compared", "rates_table", "spike_rates"]


def spike_rates(net: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """Spikes per neuron and time step of every neuron module, by name, in the order of modules, while run() is called.
    """
    fired: dict[str, list[Tensor]] = {}

    def count(name: str, out) -> None:
        spikes = out[0] if isinstance(out, tuple) else out
        found = fired.setdefault(name, [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)])
        found[0] += torch.count_nonzero(spikes.detach()).cpu()
        found[1] += spikes.numel()

    neurons = {name: m for name, m in net.named_modules() if any(host.framework.is_neuron(m) for host in hosts())}
    handles = [m.register_forward_hook(lambda m, args, out, name=name: count(name, out)) for name, m in neurons.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(fired[name][0] / fired[name][1]) for name in neurons if name in fired}


def compared(build: Callable[[], nn.Module], x: Tensor, sharings: Sequence[str], reset: Callable[[nn.Module], None]
             ) -> dict[str, dict[str, float]]:
    """{sharing: {layer: rate}}, first of the net as `build` makes it, in evaluation mode, on input x.

    sharings: as in lif_memory.sharing_of; "L" joins what share(layers="auto") joins.  reset: sets a net's states back.
    Nets are built anew with the same random numbers, so they have the same weights. Raises MemextError: a sharing that
    is not known, or that the net cannot have.
    """
    wanted, found = {text: sharing_of(text) for text in sharings}, {}
    for label, sharing in {"as it is": None, **wanted}.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = build().eval()
        if sharing is not None:
            _sharer_of(net).share(net, layers="auto" if sharing.layers else None, channels=sharing.channels, sample=x)
        with torch.no_grad():
            found[label] = spike_rates(net, lambda net=net: net(x))
        reset(net)
    return found


def _sharer_of(net: nn.Module) -> Sharer:
    for sharer in Sharer.known.values():
        if any(map(sharer.host.framework.is_neuron, net.modules())):
            return sharer
    raise MemextError(f"rates: {type(net).__name__} holds no spiking neuron of a framework that is imported")


def rates_table(found: dict[str, dict[str, float]]) -> str:
    """A line per layer, and the mean over layers; a column per sharing, with its ratio to the net as it is."""
    first = next(iter(found.values()))
    columns = {label: {**rates, "mean of layers": sum(rates.values()) / max(len(rates), 1)}
               for label, rates in found.items()}
    base = next(iter(columns.values()))
    rows = []
    for name in [*first, "mean of layers"]:
        cells = [f"{base[name]:.4f}"]
        for rates in list(columns.values())[1:]:
            rate = rates.get(name)
            cells += [f"{rate:.4f}" if rate is not None else "-",
                      f"{rate / base[name]:.2f}x" if rate is not None and base[name] else "-"]
        rows.append([name or "(the model itself)", *cells])
    header = ["spikes per neuron and step", "as it is", *(cell for label in list(found)[1:] for cell in (label, ""))]
    return text_table(rows, header)
