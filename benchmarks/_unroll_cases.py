"""The networks and methods of benchmarks.unroll_cpu: a step of training that goes through time step by step.

conv_leaky   snnTorch: two convolutions with pooling, a linear layer, a Leaky after each; membrane read at every step
conv_lif     SpikingJelly in step mode "s": two convolutions with batch norm, LIFNode and pooling, a linear layer
Every method starts from the same weights and input; the loss is the mean over steps of each step's cross entropy.
"""
from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import snntorch
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import sj_memext
import snntorch_memext
from benchmarks._resident import tell
from shared_core.temporal import online_train_step, unroll

PLAIN, NEURON, CHUNKS = "plain", "plain, neuron", "torch checkpoint"
CHECKPOINT, REVERSE, SLTT, SLTTK = "checkpoint", "reverse", "SLTT", "SLTT-K"
DIVIDED, AT_ONCE = "reverse, tolerance 1e-5", ("reverse, 4 at once", "reverse, 8 at once")
UNROLL = {"store": {"method": "store"}, CHECKPOINT: {"method": "checkpoint"}, REVERSE: {"method": "reverse"},
          DIVIDED: {"method": "reverse", "tolerance": 1e-5}, AT_ONCE[0]: {"method": "reverse", "steps_at_once": 4},
          AT_ONCE[1]: {"method": "reverse", "steps_at_once": 8}, "online": {"method": "online"}}
METHODS = (PLAIN, NEURON, CHUNKS, *UNROLL, SLTT, SLTTK)
EXACT = (NEURON, CHUNKS, "store", CHECKPOINT, REVERSE, DIVIDED)  # the gradient is plain's but for rounding
BATCH, BETA, DENSITY, CLASSES = 16, 0.95, 0.3, 10


@dataclass(frozen=True)
class Case:
    """network: "conv_leaky" or "conv_lif".  method: of METHODS."""

    network: str
    method: str
    steps: int
    batch: int = BATCH
    threads: int = 2


# ---- networks --------------------------------------------------------------------------------------------------------


def conv_leaky(hidden: bool = True) -> nn.Sequential:
    """For [N, 1, 28, 28].  hidden: whether the neurons hold their membranes."""
    def leaky(output: bool = False) -> nn.Module:
        return snntorch.Leaky(beta=BETA, init_hidden=hidden, output=output)

    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), leaky(),
                         nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), leaky(),
                         nn.Flatten(), nn.Linear(32 * 7 * 7, CLASSES), leaky(output=True))


def conv_lif(hidden: bool = True) -> nn.Sequential:
    """For [N, 3, 32, 32]. LIFNode always holds its potential."""
    def lif() -> nn.Module:
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="s")

    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), lif(), nn.AvgPool2d(2),
                         nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), lif(), nn.AvgPool2d(2),
                         nn.Flatten(), nn.Linear(32 * 8 * 8, CLASSES))


NETWORKS = {"conv_leaky": (conv_leaky, (1, 28, 28), snntorch_memext), "conv_lif": (conv_lif, (3, 32, 32), sj_memext)}


def score(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The membrane where the last neuron returns it."""
    return out[-1] if isinstance(out, tuple) else out


# ---- one step of training --------------------------------------------------------------------------------------------


class Training:
    """The network of a case with its input and labels; `step()` is loss and gradients, from neurons at rest."""

    def __init__(self, case: Case):
        if case.method not in METHODS:
            raise ValueError(f"method {case.method!r}; allowed: {', '.join(METHODS)}")
        build, shape, adapter = NETWORKS[case.network]
        torch.manual_seed(0)  # the same weights and batch for every method
        self.case = case
        self.net = build(hidden=case.method != CHUNKS)
        if case.method == NEURON:
            adapter.retrofit(self.net, "neuron")
        self.x = torch.rand(case.steps, case.batch, *shape)
        if case.network == "conv_leaky":  # events; images stay as they are
            self.x = (self.x < DENSITY).float()
        self.labels = torch.randint(CLASSES, (case.batch,))

    def step(self) -> Tensor:
        self.rest()
        loss = self._loss()
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def rest(self) -> None:
        """No gradients, no states."""
        self.net.zero_grad(set_to_none=True)
        for module in self.net.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        if self.case.network == "conv_lif":
            functional.reset_net(self.net)

    def gradients(self) -> list[Tensor]:
        """Of the last step."""
        return [p.grad.detach().clone() for p in self.net.parameters() if p.grad is not None]

    def neurons(self) -> int:
        """Elements of all states: neurons of the batch."""
        counts: list[int] = []
        hooks = [m.register_forward_hook(lambda _m, _x, out: counts.append(score(out).numel()))
                 for m in self.net.modules() if isinstance(m, snntorch.Leaky | neuron.BaseNode)]
        with torch.no_grad():
            self.rest()
            self._run(self.x[0], {})
        for hook in hooks:
            hook.remove()
        self.rest()
        return sum(counts)

    def _loss(self) -> Tensor:
        steps, method = self.case.steps, self.case.method
        if method in (SLTT, SLTTK):
            chosen = max(1, steps // 4) if method == SLTTK else None
            return online_train_step(self.net, self.x, lambda out, t: cross_entropy(score(out), self.labels), k=chosen,
                                     outputs=False)[1]
        if method in UNROLL:
            out = score(unroll(self.net, self.x, **UNROLL[method]))
            return cross_entropy(out.flatten(0, 1), self.labels.repeat(steps))
        if method == CHUNKS:
            return self._in_chunks() / steps
        return sum(cross_entropy(score(self.net(x)), self.labels) for x in self.x) / steps

    # ---- torch.utils.checkpoint over chunks of time steps: their inputs and states are kept, and they run again ----

    def _in_chunks(self) -> Tensor:
        size = math.ceil(math.sqrt(self.case.steps))
        total, states = torch.zeros(()), self._start()
        for x in self.x.split(size):
            loss, *states = checkpoint(self._chunk, x, *states, use_reentrant=False,
                                       context_fn=lambda: (contextlib.nullcontext(), self._statistics_kept()))
            total = total + loss
        return total

    def _start(self) -> list[Tensor]:
        held: dict = {}
        with torch.no_grad(), self._statistics_kept():
            self._run(self.x[0], held)
        self.rest()
        return [torch.zeros_like(v) for v in held.values()]

    def _chunk(self, x_seq: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        stateful = [m for m in self.net if isinstance(m, snntorch.Leaky | neuron.BaseNode)]
        held = dict(zip(stateful, states))
        loss = sum(cross_entropy(self._run(x, held), self.labels) for x in x_seq)
        for module in stateful:
            if isinstance(module, neuron.BaseNode):
                module.v = 0.0  # else it would keep the graph of the chunk
        return loss, *held.values()

    def _run(self, x: Tensor, held: dict[nn.Module, Tensor]) -> Tensor:
        """One step with the states in `held`, which it replaces by the new ones; an empty one: at rest."""
        for module in self.net:
            if isinstance(module, snntorch.Leaky) and not module.init_hidden:
                mem = held.get(module)
                x, held[module] = module(x, mem) if mem is not None else module(x)
                x = held[module] if module is self.net[-1] else x
            elif isinstance(module, neuron.BaseNode):
                if module in held:
                    module.v = held[module]
                x = module(x)
                held[module] = module.v
            else:
                x = score(module(x))
        return x

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Running statistics of batch norm do not move: they have moved in the first run."""
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        kept = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
        for m in norms:
            m.momentum = 0.0
        try:
            yield
        finally:
            for m, (momentum, batches) in zip(norms, kept):
                m.momentum = momentum
                m.num_batches_tracked.copy_(batches)


# ---- as a process that does nothing else: resident memory ------------------------------------------------------------


def main(argument: str) -> None:
    case = Case(**json.loads(argument))
    torch.set_num_threads(case.threads)
    Training(Case(**{**asdict(case), "steps": 9})).step()  # threads, oneDNN and kernels are loaded; 9: 8 at once, and 1
    training = Training(case)
    tell(training.step)


if __name__ == "__main__":
    main(sys.argv[1])
