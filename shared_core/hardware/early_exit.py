"""Inference that stops as soon as it is sure, sample by sample (DT-SNN).

Source: "Are SNNs Truly Energy-efficient?", Section IV (Dynamic Timestep Reduction): a sample stops at the first time
step at which the entropy of the prediction is below a threshold. The paper gives no formula; this is the usual one:

    H[t] = -(1 / log K) sum_k p_k log p_k,   p = softmax(mean of the outputs of steps 1..t)        0 <= H <= 1

The entropy unit is outside of all costs ("negligible energy overhead", as the paper says).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import MemextError
from ._exit_calibrate import Calibration, calibrated
from ._exit_command import Exits
from ._exit_probe import Known, probe
from ._exit_report import ExitReport, exit_costs, reported, tables_of
from ._exit_step import Step

__all__ = ["Calibration", "EarlyExit", "ExitReport", "ExitResult", "early_exit", "entropy", "exit_costs",
           "exits_on"]


def entropy(scores: Tensor) -> Tensor:
    """Normalised entropy of softmax(scores [..., K]): [...], from 0 (sure) to 1 (no idea)."""
    log_p = scores.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(scores.shape[-1])


@dataclass(frozen=True)
class ExitResult:
    """Of N samples.  prediction: [N] int64.  outputs: [N, K], the mean over the steps each sample ran.
    steps: [N] int64, 1 to T.  entropy: [N], when it stopped.  T: steps at most."""

    prediction: Tensor
    outputs: Tensor
    steps: Tensor
    entropy: Tensor
    T: int

    @property
    def mean_steps(self) -> float:
        return self.steps.double().mean().item()

    @property
    def exits(self) -> tuple[float, ...]:
        """Share of samples that stopped at step 1, 2, ..., T."""
        counts = torch.bincount(self.steps, minlength=self.T + 1)[1:]
        return tuple((counts.double() / len(self.steps)).tolist())

    def accuracy(self, labels: Tensor) -> float:
        """labels: [N].  Share of samples that were predicted right."""
        return (self.prediction == labels.to(self.prediction.device)).double().mean().item()

    @classmethod
    def cat(cls, results: Sequence[ExitResult]) -> ExitResult:
        """Of several batches."""
        return cls(*(torch.cat([getattr(r, name) for r in results])
                     for name in ("prediction", "outputs", "steps", "entropy")), results[0].T)


class EarlyExit:
    """What early_exit returns. Call it on a batch. threshold may be set at any time."""

    def __init__(self, step: Step, threshold: float | None, T: int | None, encode: Callable | None):
        self._step, self.T, self._encode = step, T, encode
        self.threshold = threshold
        self._known: tuple | None = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_known": None}  # it names places of this net; a copy looks at its own

    @property
    def threshold(self) -> float | None:
        return self._threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise MemextError(f"early_exit: threshold is {value!r}; allowed: a number from 0 (never before the last "
                              "step) to 1 (above it: always at the first), or None, to be calibrated")
        self._threshold = value

    def __call__(self, x: Tensor) -> ExitResult:
        """x: [T, N, *], or [N, *] with T or encode, as the network takes it.  See early_exit."""
        if self.threshold is None:
            raise MemextError("early_exit: there is no threshold yet; pass threshold=0.2, or call calibrate(loader, "
                              "mean_steps=2) first")
        return ExitResult(*self._run(x, self.threshold), self._steps_of(x))

    def all_steps(self, x: Tensor) -> Tensor:
        """[T, N, K]: the mean outputs after 1, 2, ..., T steps, when nobody leaves."""
        return self._run(x, None)

    def calibrate(self, loader: Iterable, *, accuracy: float | None = None, drop: float | None = None,
                  mean_steps: float | None = None) -> Calibration:
        """Sets the threshold, on held-out data, and says what it does there.

        loader: yields (x, labels); x as this object takes it.
        One of: accuracy: of 0 to 1, to be reached with as few steps as possible.  drop: likewise, to be lost at most
        against all T steps.  mean_steps: of 1 to T, not to be exceeded, with as little entropy left as possible.
        Raises MemextError: not one of the three; no threshold does it (the best is named); the loader is empty.
        """
        found = calibrated(self, loader, accuracy, drop, mean_steps)
        self.threshold = found.threshold
        return found

    def report(self, loader: Iterable, *, samples: int = 256, **options) -> ExitReport:
        """What the loader's samples cost with and without stopping early, by all models of `costs`.

        loader: yields (x, labels), or x alone (no accuracy then).
        samples: at most so many samples are run again to count spikes, of those that stop at each step, and of all.
        options: of `costs`, e.g. sparsity="weights", lif_units=32.
        """
        return reported(self, loader, samples, options)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _steps_of(self, x: Tensor) -> int:
        _check_input(x, self.T is not None)
        return len(x) if self.T is None else self.T

    def _input(self, x: Tensor, t: int) -> Tensor:
        """[N, *] of step t, of all samples: who has left still draws random numbers, so that nobody's change."""
        if self._encode is not None:
            return self._encode(x)
        return x[t] if self.T is None else x

    def _how_to_gather(self, x: Tensor, steps: int) -> Known | None:
        """None where nobody can leave. Looked at again when samples have another form, or modules another class."""
        if steps == 1:
            return None
        step, like = self._step, x if self.T is not None else x[0]
        form = tuple(like.shape[1:]), like.dtype, like.device
        if self._known is None or self._known[:2] != (form, step.classes()):
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                step.start(like)
                known = probe(step, torch.stack([self._input(x, t) for t in range(min(3, steps))]))
            self._known = form, step.classes(), known  # the first forward of share("auto") changes classes
        return self._known[2]

    def _run(self, x: Tensor, threshold: float | None):
        """(prediction, outputs, steps, entropy), or, with threshold None, the means [T, N, K]."""
        T, step = self._steps_of(x), self._step
        with step.running():
            known = self._how_to_gather(x, T)
            states = step.start(x[0] if self.T is None else x)
            left = torch.arange(x.shape[0 if self.T is not None else 1], device=x.device)  # who is still running
            found, means, total = [], [], 0
            for t in range(T):
                x_t = self._input(x, t)
                x_t = x_t if len(left) == len(x_t) else x_t.index_select(0, left)
                scores, states = step(x_t, states)
                total = total + scores
                mean = total / (t + 1)
                means.append(mean)
                if threshold is None:
                    continue
                h = entropy(mean)
                done = h < threshold if t < T - 1 else torch.ones_like(h, dtype=torch.bool)
                gone = done.nonzero()[:, 0]
                if not len(gone):
                    continue
                found.append((left[gone], mean[gone], torch.full_like(left[gone], t + 1), h[gone]))
                keep = (~done).nonzero()[:, 0]
                if not len(keep):
                    break
                states = known.gather(states, len(left), keep)
                left, total = left[keep], total[keep]
        if threshold is None:
            return torch.stack(means)
        index, outputs, steps, h = (torch.cat(parts) for parts in zip(*found))
        order = index.argsort()
        return outputs[order].argmax(1), outputs[order], steps[order], h[order]


def early_exit(net: nn.Module | Callable, threshold: float | None = None, *, T: int | None = None, state=None,
               output: Callable | None = None, encode: Callable[[Tensor], Tensor] | None = None,
               steps_attribute: str | None = None) -> EarlyExit:
    """Inference in which each sample stops when the entropy of its prediction falls under the threshold (DT-SNN).

        stopped = early_exit(net, threshold=0.1)
        result = stopped(x_seq)                      # [T, N, *] -> prediction, outputs, steps, entropy of each sample
        stopped.calibrate(loader, drop=0.002)        # or have the threshold found on held-out data
        print(stopped.report(loader).text())         # accuracy, steps, energy, latency and EDP in the mean

    Samples that are done leave the batch: the steps that follow run on fewer samples, with the states of those only.
    Predictions are those of a run in which nobody leaves (up to rounding, which depends on the batch size).

    net: a network of SpikingJelly or snnTorch; in step mode "m" it is called on sequences of one step. Or a function
        step(x, *state) -> (output, state) of one that hands its states around; see state.
    threshold: of the normalised entropy, 0 to 1; None: to be calibrated first.
    T: steps; then x is [N, *], every step's input. None: x is [T, N, *].
    state: the states before the first step, as a tuple, nested if you like: at rest and without a batch dimension (what
        reset_mem() returns, None, numbers), or as a function of the first step's x [N, *].
    output: what a step's scores [N, K] are, of what it returns; e.g. lambda out: out[0], the spikes of (spk, mem).
    encode: called on x [N, *] of the whole batch once a step, T times; its random numbers are the same whoever leaves.
    steps_attribute: name of the attribute with the number of steps, of a network in step mode "m" that takes [N, *] and
        repeats it by itself; it is 1 while the network is stepped. T is then what the attribute says.

    All that a step changes in the modules is looked at on three samples, before the first batch: neurons of any kind
    (fused, shared, reversible, recurrent, retrofitted), stateful layers, attributes of modules of your own.
    The network runs in evaluation mode, without gradients and from rest; afterwards it is as it was, states included.
    A compiled network is compiled again for new batch sizes (mark the batch dimension as dynamic).
    Raises MemextError: an argument out of range. When called: a state without a batch dimension (by name), samples
        or steps that depend on each other, outputs that are no scores, an input of the wrong form.
    """
    if not isinstance(net, nn.Module) and not callable(net):
        raise MemextError(f"early_exit: net is {type(net).__name__}; a torch.nn.Module, or a function that does one "
                          "step, is needed")
    if state is not None and isinstance(net, nn.Module) and any(
            getattr(m, "step_mode", None) == "m" for m in net.modules()):
        raise MemextError("early_exit: state= is for networks that are called once a step; this one is in step mode "
                          "'m'")
    if steps_attribute is not None:
        held = getattr(net, steps_attribute, None)
        if isinstance(held, bool) or not isinstance(held, int) or held < 1:
            raise MemextError(f"early_exit: steps_attribute is {steps_attribute!r}, and that is {held!r} in this "
                              f"{type(net).__name__}; allowed: the name of an attribute with the number of steps")
        T = held if T is None else T
    if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < 1):
        raise MemextError(f"early_exit: T is {T!r}; allowed: a number of time steps from 1 on, or None")
    if encode is not None and (T is None or not callable(encode)):
        raise MemextError(f"early_exit: encode is {encode!r} with T={T!r}; allowed: a function x -> x, with T=...")
    return EarlyExit(Step(net, state, output, steps_attribute, encode), threshold, T, encode)


def exits_on(net: nn.Module, x: Tensor, threshold: float) -> Exits:
    """Who stops when on one batch [T, N, *], and the layers as those have them: for exit_costs and memext energy."""
    stopped = early_exit(net, threshold)
    result = stopped(x)
    kept = {t: [x[:, result.steps == t]] for t in result.steps.unique().tolist()}
    return Exits(result.exits, tables_of(stopped, kept))


def _check_input(x, repeated: bool) -> None:
    if not isinstance(x, Tensor) or x.dim() < (1 if repeated else 2) or not x.numel():
        raise MemextError(f"early_exit: x is {type(x).__name__}"
                          f"{f' of shape {tuple(x.shape)}' if isinstance(x, Tensor) else ''}; allowed: "
                          + ("[N, *], shown in every step" if repeated else "[T, N, *], or [N, *] with T=..."))
