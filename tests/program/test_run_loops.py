"""Loops over time in a forward, given to unroll without a change of source: values and gradients are those of the loop
as it is written, in any of the forms people write; what cannot be seen through is left, with its reason.
"""
from __future__ import annotations

import copy
import linecache
import pickle
import textwrap

import pytest
import snntorch as snn
import torch
from torch import nn

import snntorch_memext
from shared_core.program import _loops
from shared_core.temporal import _unroll

STEPS = 9


class Base(nn.Module):
    def __init__(self, hidden=False):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 4)
        self.lif1 = snn.Leaky(beta=0.9, init_hidden=hidden)
        self.lif2 = snn.Leaky(beta=0.8, learn_beta=True, init_hidden=hidden)
        self.drop = nn.Dropout(0.3)
        with torch.no_grad():
            self.fc1.weight.mul_(3)
            self.fc2.weight.mul_(3)


class Appends(Base):
    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, mems = [], []
        for step in range(x.shape[0]):
            """A comment of sorts."""
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk1 = self.drop(spk1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            mems.append(mem2)
        return torch.stack(spikes), torch.stack(mems), spk1, step


class Sums(Base):
    def forward(self, x):
        total, mem1, mem2 = 0.0, self.lif1.init_leaky(), self.lif2.init_leaky()
        for frame in x:
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            if self.training:
                spk1 = spk1 * 0.5
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total += spk2 + 0.1 * mem2
        return total / len(x)


class Hidden(Base):
    def __init__(self):
        super().__init__(hidden=True)

    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            out = []
            for step, frame in enumerate(x):  # noqa: B007  two loop variables: left as it is
                out.append(self.lif2(self.fc2(self.lif1(self.fc1(frame)))))
        return torch.stack(out)


class HiddenSteps(Base):
    def __init__(self):
        super().__init__(hidden=True)

    def forward(self, x):
        out = []
        for step in range(len(x)):
            out.append(self.step(x[step]))
        return torch.stack(out)

    def step(self, frame):
        return self.lif2(self.fc2(self.lif1(self.fc1(frame))))


class Inherits(Appends):
    def forward(self, x):
        scale = 2.0
        return tuple(scale * part if isinstance(part, torch.Tensor) else part for part in super().forward(x))


class Feedback(Base):
    """The spikes of the step before come in again; a learned first state, used before it is assigned."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.full((4,), 0.3))

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        back = self.first.expand(x.shape[1], 4)
        rec = []
        for t in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[t]) + back.repeat(1, 3), mem1)
            back, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec), back


@pytest.fixture(autouse=True)
def forwards():
    """The classes as they are written, before and after."""
    classes = {cls: cls.forward for cls in _all(Base) if "forward" in vars(cls)}
    yield
    for cls, forward in classes.items():
        cls.forward = forward


def _all(cls):
    return [cls, *(sub for child in cls.__subclasses__() for sub in _all(child))]


@pytest.fixture
def unrolled(monkeypatch):
    """How many steps went through unroll."""
    seen = []
    monkeypatch.setattr(_loops, "unroll", lambda *args, **kwargs: seen.append(kwargs["num_steps"])
                        or _unroll.unroll(*args, **kwargs))
    return seen


def run(net, x):
    net.zero_grad()
    torch.manual_seed(3)
    for m in net.modules():
        if isinstance(m, snn.Leaky):
            m.reset_mem()
    x = x.detach().requires_grad_()
    out = net(x)
    tensors = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
    sum((t * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum() for t in tensors if t.requires_grad).backward()
    return tensors, [x.grad, *(p.grad for p in net.parameters() if p.grad is not None)], torch.get_rng_state()


@pytest.mark.parametrize("method", ["reverse", "checkpoint"])
@pytest.mark.parametrize("kind", [Appends, Sums, HiddenSteps, Inherits, Feedback], ids=lambda cls: cls.__name__)
def test_same_values_gradients_and_random_numbers(kind, method, unrolled):
    torch.manual_seed(0)
    net, x = kind(), torch.rand(STEPS, 5, 6)
    snntorch_memext.retrofit(net, "neuron")
    wanted = run(copy.deepcopy(net), x)
    changed, left = _loops.rewrite(net, method)
    assert left == [] and [cls for cls, _ in changed] == [Appends if kind is Inherits else kind]
    got = run(net, x)
    assert unrolled == [STEPS - 1]  # the first step runs as written
    assert sum(int(t.ne(0).sum()) for t in wanted[0]) > 10 and all(g.norm() > 1e-3 for g in wanted[1][1:3])
    for a, b in zip(got[0], wanted[0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(got[1], wanted[1], strict=True):
        # The same sums in another order: time reversed, and the first step apart. Some 10 roundings of 2^-24.
        assert (a - b).norm() <= 2e-6 * b.norm()
    assert torch.equal(got[2], wanted[2])


def test_without_gradients_short_and_empty_sequences_run_as_written(unrolled):
    net, x = Appends(), torch.rand(STEPS, 5, 6)
    net.eval()
    with torch.no_grad():
        wanted = net(x)
    twice = net(x[:2])
    _loops.rewrite(net, "reverse")
    with torch.no_grad():
        got = net(x)
    assert all(torch.equal(a, b) for a, b in zip(got[:3], wanted[:3])) and got[3] == wanted[3] == STEPS - 1
    again = net(x[:2])
    assert torch.equal(again[0], twice[0]) and again[3] == 1 and unrolled == []
    with pytest.raises(RuntimeError):  # torch.stack of nothing, the program's own
        net(x[:0])


def test_copies_and_pickles_and_back_as_written(unrolled):
    net, x = Appends(), torch.rand(STEPS, 5, 6)
    snntorch_memext.retrofit(net, "neuron")
    changed, _ = _loops.rewrite(net, "reverse")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        run(other, x)
    assert len(unrolled) == 2
    with _loops.as_written(changed):
        run(net, x)
    assert len(unrolled) == 2
    run(net, x)
    assert len(unrolled) == 3


def test_what_unroll_refuses_runs_as_written(unrolled):
    class Grows(Base):
        def forward(self, x):
            mem, made, seen = self.lif1.init_leaky(), [], torch.zeros(1)
            for step in range(len(x)):
                spk, mem = self.lif1(self.fc1(x[step]), mem)
                seen = torch.cat([seen, spk.mean().view(1)])
                made.append(seen)
            return made[-1]

    net, x = Grows(), torch.rand(STEPS, 5, 6)
    wanted = run(copy.deepcopy(net), x)
    changed, _ = _loops.rewrite(net, "reverse")
    for _ in range(2):
        got = run(net, x)
        assert torch.equal(got[0][0], wanted[0][0])
        for a, b in zip(got[1], wanted[1], strict=True):
            assert torch.equal(a, b)
    assert unrolled == [STEPS - 1]  # tried once, and not again
    assert "shape" in Grows.forward._memext_runner.problem and len(changed) == 1


def _left(body: str) -> list[str]:
    """Why the loop of a class with this forward is left."""
    source = "def forward(self, x):\n    mem = self.lif1.init_leaky()\n    rec = []\n" + textwrap.indent(
        textwrap.dedent(body), "    ") + "\n    return rec\n"
    name = f"<left {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space = {"torch": torch}
    exec(compile(source, name, "exec"), space)
    cls = type("Written", (Base,), {"forward": space["forward"], "__module__": __name__})
    changed, left = _loops.rewrite(cls(), "reverse")
    assert changed == []
    return left


@pytest.mark.parametrize("body, said", [
    ("for t in range(3):\n    spk, mem = self.lif1(self.fc1(x), mem)\n    if spk.sum() > 3:\n        break", "break"),
    ("for t in range(3):\n    self.spk, mem = self.lif1(self.fc1(x), mem)", "writes into something"),
    ("rec = torch.zeros(3, 5, 12)\nfor t in range(3):\n    rec[t], mem = self.lif1(self.fc1(x), mem)",
     "writes into something"),
    ("for t in range(3):\n    spk, mem = self.lif1(self.fc1(x), mem)\n    print(spk)", "result is not used"),
    ("for t in range(3):\n    spk, mem = self.lif1(self.fc1(x), mem)\n    mem = mem.mul_(2)", "in place (mul_)"),
    ("for t in range(3):\n    spk, mem = self.lif1(self.fc1(x), mem)\n    rec.append(spk)\n    rec.append(mem)",
     "more than once"),
    ("for t in range(3):\n    spk, mem = self.lif1(self.fc1(x), mem)\n    if t:\n        rec.append(spk)",
     "under a condition"),
    ("for t in range(3):\n    x = self.layers[t](x)", "no loop over time"),
    ("for t, y in enumerate(x):\n    spk, mem = self.lif1(self.fc1(y), mem)", "several loop variables"),
])
def test_loops_that_are_left_say_why(body, said):
    reasons = _left(body)
    assert len(reasons) == 1 and said in reasons[0] and reasons[0].startswith("Written.forward, the loop in line")


def test_tracebacks_keep_the_programs_lines(unrolled):
    class Fails(Base):
        def forward(self, x):
            mem = self.lif1.init_leaky()
            for step in range(len(x)):
                spk, mem = self.lif1(self.fc1(x[step]), mem)
                spk = spk / (3 - step)
                mem = mem + torch.zeros(7) if step == 4 else mem
            return spk

    lines = {}
    for change in (False, True):
        net = Fails()
        if change:
            assert len(_loops.rewrite(net, "reverse")[0]) == 1
        with pytest.raises(RuntimeError, match="size of tensor") as caught:
            net(torch.rand(STEPS, 5, 6))
        lines[change] = [entry.lineno for entry in caught.traceback if entry.path and entry.path.name.endswith(
            "test_run_loops.py")][-1]
    assert lines[False] == lines[True]
