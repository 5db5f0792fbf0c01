"""Small snnTorch nets for the tests of stepping through time, the plain loop they are compared with, and comparisons.

The reference is always the framework itself: a Python loop over time and Torch's autograd. A gradient that float32
itself misses (a scalar's sum that cancels, a steep surrogate) is compared with `truth`: float64 autograd in which every
neuron fires where the float32 run fired.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import snntorch as snn
import torch
from torch import Tensor, nn

from shared_core.temporal import unroll
from snntorch_memext.surrogate import from_snntorch

SINGLE = 1e-5   # norm-relative, float32: gradients of the steps are added up in another order
DOUBLE = 1e-10  # float64: the same, with room
TWICE = 2.0     # ... or twice the framework's own error against float64

RESETS = ("subtract", "zero", "none")
LEAKS = (0.05, 0.3, 0.5, 0.9, 0.99, 1.0)


# ---- nets: inputs [B, 6], hidden 12 neurons, outputs (spk [B, 5], mem [B, 5]) ----------------------------------------

def lif(beta=0.9, **options) -> snn.Leaky:
    """No threshold at its default: 0.8."""
    return snn.Leaky(**{"beta": beta, "threshold": 0.8, "init_hidden": True, **options})


def chain(make: Callable = lif, between: Sequence[nn.Module] = (), **options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), *between, make(**options), nn.Linear(12, 5), make(output=True, **options))


class Residual(nn.Module):
    """A module with a forward of its own, a convolution, and a path around a neuron."""

    def __init__(self, **options):
        super().__init__()
        self.conv, self.lif1 = nn.Conv1d(1, 2, 3, padding=1), lif(**options)
        self.lif2, self.fc, self.lif3 = lif(**options), nn.Linear(12, 5), lif(output=True, **options)

    def forward(self, x):
        spk = self.lif1(self.conv(x.unsqueeze(1)))
        return self.lif3(self.fc((spk + self.lif2(1.5 * spk)).flatten(1)))


class Explicit(nn.Module):
    """States are handed in and out, as in the framework's tutorials."""

    def __init__(self, **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 12), lif(init_hidden=False, **options)
        self.fc2, self.lif2 = nn.Linear(12, 5), lif(init_hidden=False, **options)

    def step(self, x, mem1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return (spk2, mem2), (mem1, mem2)


class AsDouble(nn.Module):
    """snnTorch's spikes are float32 in a float64 net, too; the next layer wants float64."""

    def forward(self, x):
        return x.double()


class _KeepsDtype(torch.autograd.Function):
    """atan(2) whose spikes have the dtype of the state."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        return g / (1 + (torch.pi * ctx.saved_tensors[0]) ** 2)


def keeps_dtype(z: Tensor) -> Tensor:
    return _KeepsDtype.apply(z)


def neurons(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, snn.SpikingNeuron)]


def at_rest(net: nn.Module) -> nn.Module:
    """All neurons of this net (the framework's own reset goes over those of the process)."""
    for m in net.modules():
        if isinstance(m, snn.SpikingNeuron):
            m.reset_mem()
    return net


def inputs(steps: int, batch: int = 3, size: int = 6, dtype=torch.float32) -> Tensor:
    return torch.randn(steps, batch, size, generator=torch.Generator().manual_seed(steps), dtype=dtype) + 0.3


def starts(batch: int = 3, sizes=(12, 5), scale: float = 0.3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    return tuple(scale * torch.randn(batch, n, generator=generator) for n in sizes)


# ---- the plain loop --------------------------------------------------------------------------------------------------

def rows(x_seq, num_steps: int | None = None) -> Iterator[Tensor]:
    """As unroll reads its input: [T, *]; [*] with num_steps; a function with num_steps."""
    if num_steps is None:
        yield from x_seq
    for t in range(num_steps or 0):
        yield x_seq(t) if callable(x_seq) else x_seq


def plain(step: Callable, x_seq, state: tuple = (), num_steps: int | None = None, between: Callable | None = None):
    """What users write. Returns (outputs, each [T, *], as a tuple; final state). between(t): called before step t."""
    seen = []
    for t, x in enumerate(rows(x_seq, num_steps)):
        if between is not None:
            between(t)
        if state:
            out, state = step(x, *state)
        else:
            out = step(x)
        seen.append(out if isinstance(out, tuple) else (out,))
    return tuple(torch.stack(parts) for parts in zip(*seen)), state


def weighted(outputs: Sequence[Tensor], final: Sequence[Tensor] = ()) -> Tensor:
    """A loss that gives every element of every output and of the final state a gradient of its own."""
    generator, total = torch.Generator().manual_seed(3), 0.0
    for out in (*outputs, *final):
        if isinstance(out, Tensor) and out.requires_grad:
            weight = torch.randn(out.shape, generator=generator, dtype=torch.float64) + 0.2
            total = total + (out * weight.to(out.dtype)).sum()
    return total


@dataclass
class Run:
    """One forward and backward pass. grads: by parameter name, and of x and state0, state1, ..."""

    outputs: tuple[Tensor, ...]
    final: tuple
    grads: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    random: Tensor
    net: nn.Module = field(repr=False, default=None)


def run(net: nn.Module, x_seq, method: str | None = None, *, state: Sequence[Tensor] = (), loss: Callable = weighted,
        num_steps: int | None = None, learn_x: bool = True, forward: Callable | None = None, **options) -> Run:
    """A copy of the net, started at rest; method None: the plain loop. forward: the step of this net, if it is not the
    net itself; with `state`, it is handed the states."""
    net = at_rest(copy.deepcopy(net))
    step = forward(net) if forward is not None else net.step if state else net
    if isinstance(x_seq, Tensor):
        x_seq = x_seq.detach().clone().requires_grad_(learn_x)
    state = tuple(s.detach().clone().requires_grad_() for s in state)
    torch.manual_seed(7)
    if method is None:
        outputs, final = plain(step, x_seq, state, num_steps)
    elif state:
        outputs, final = unroll(step, x_seq, method, state=state, num_steps=num_steps, **options)
    else:
        outputs, final = unroll(step, x_seq, method, num_steps=num_steps, **options), ()
    random = torch.get_rng_state()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss(outputs, final).backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    grads |= {f"state{i}": s.grad for i, s in enumerate(state)}
    if isinstance(x_seq, Tensor):
        grads["x"] = x_seq.grad
    buffers = {name: b.detach().clone() for name, b in net.named_buffers()}
    return Run(tuple(o.detach() for o in outputs), tuple(s.detach() for s in final), grads, buffers, random, net)


# ---- a float64 run that fires where the float32 run fired ------------------------------------------------------------

class _Forced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, fired, surrogate):
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate
        return fired.to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.surrogate.grad(*ctx.saved_tensors), None, None


def truth(net: nn.Module, x_seq: Tensor, **options) -> dict[str, Tensor]:
    """Gradients in float64; arguments of `run`, which this calls twice."""
    decisions: list[Tensor] = []

    def recording(spike_grad):
        def record(z):
            decisions.append(z.detach() > 0)
            return spike_grad(z)
        return record

    def forced(spike_grad):
        surrogate = from_snntorch(spike_grad)
        return lambda z: _Forced.apply(z, next(replay), surrogate)

    kept = [n.spike_grad for n in neurons(net)]
    try:
        for n, own in zip(neurons(net), kept):
            n.spike_grad = recording(own)
        run(net, x_seq, **options)
        replay = iter(decisions)
        for n, own in zip(neurons(net), kept):
            n.spike_grad = forced(own)
        wide = {**options, "state": tuple(s.double() for s in options.get("state", ()))}
        return run(copy.deepcopy(net).double(), x_seq.double(), **wide).grads
    finally:
        for n, own in zip(neurons(net), kept):
            n.spike_grad = own


# ---- comparisons -----------------------------------------------------------------------------------------------------

def distance(got: Tensor, wanted: Tensor) -> float:
    """Norm-relative, in float64; 0 for two zeros."""
    gap = (got.double() - wanted.double()).norm().item()
    return gap and gap / max(wanted.double().norm().item(), 1e-30)


def assert_values(got: Run, wanted: Run) -> None:
    """Spikes, states, buffers and random numbers: no bit differs."""
    assert len(got.outputs) == len(wanted.outputs) and len(got.final) == len(wanted.final)
    for i, (a, b) in enumerate(zip((*got.outputs, *got.final), (*wanted.outputs, *wanted.final))):
        assert a.dtype == b.dtype and torch.equal(a, b), f"output {i}: {(a != b).sum()} of {b.numel()} values differ"
    assert got.buffers.keys() == wanted.buffers.keys()
    for name, b in wanted.buffers.items():
        assert torch.equal(got.buffers[name], b), name
    assert torch.equal(got.random, wanted.random), "random numbers go on elsewhere"


def assert_gradients(got: dict, wanted: dict, bound: float = SINGLE, exact: Callable | None = None) -> None:
    """Within the bound of the plain loop's; where not, within max(bound, 2x the plain loop's own error) of exact()."""
    assert got.keys() == wanted.keys()
    oracle = None
    for name, g in wanted.items():
        assert (got[name] is None) == (g is None), f"{name}: {got[name]} for {g}"
        if g is None or distance(got[name], g) <= bound:
            continue
        assert exact is not None, f"{name}: {distance(got[name], g):.1e} > {bound:.0e}"
        oracle = oracle or exact()
        found, own = distance(got[name], oracle[name]), distance(g, oracle[name])
        assert found <= max(bound, TWICE * own), f"{name}: {found:.1e} from float64, the plain loop {own:.1e}"


def assert_moves(wanted: Run) -> None:
    """No gradient that is compared is all zeros."""
    for name, g in wanted.grads.items():
        assert g is None or g.abs().max() > 0, f"the gradient of {name} is zero: this case tests nothing"


def rates(net: nn.Module, x_seq, **options) -> list[float]:
    """Firing rate of every neuron layer, in the plain loop."""
    counts: dict[int, list[float]] = {}

    def count(m, args, out):
        spk = out[0] if isinstance(out, tuple) else out
        counts.setdefault(id(m), []).append((spk != 0).double().mean().item())

    handles = [n.register_forward_hook(count) for n in neurons(net)]
    try:
        state, forward = options.pop("state", ()), options.pop("forward", None)
        random = torch.get_rng_state()
        kept = {name: b.clone() for name, b in net.named_buffers() if name in net.state_dict()}
        with torch.no_grad():
            plain(forward(net) if forward else net.step if state else net, x_seq, state, **options)
    finally:
        torch.set_rng_state(random)
        for name, b in net.named_buffers():
            if name in kept:
                b.copy_(kept[name])
        at_rest(net)
        for handle in handles:
            handle.remove()
    return [sum(counts[id(n)]) / len(counts[id(n)]) for n in neurons(net)]


def firing(net: nn.Module, x_seq, low: float = 0.1, high: float = 0.4, **options) -> nn.Module:
    """The net, with thresholds at which every layer fires 10-40 % of the time; fails if there are none."""
    for i, n in enumerate(neurons(net)):
        scale, shrink = 1.0, 2.0
        above = None
        for _ in range(24):
            rate = rates(net, x_seq, **dict(options))[i]
            if low + 0.03 <= rate <= high - 0.05:
                break
            now = rate > 0.25
            if above is not None and now != above:
                shrink = shrink ** 0.5
            above, scale = now, shrink if now else 1 / shrink
            with torch.no_grad():
                n.threshold.copy_((n.threshold * scale).float())  # snnTorch rounds to float32 in a float64 net, too
    assert_fire(net, x_seq, low, high, **options)
    return net


def assert_fire(net: nn.Module, x_seq, low: float = 0.1, high: float = 0.4, **options) -> None:
    found = rates(net, x_seq, **dict(options))
    assert all(low <= r <= high for r in found), f"firing rates {found} outside [{low}, {high}]"
