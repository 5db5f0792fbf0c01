"""What shared_core.temporal says about input it cannot use: where, what was passed, what is allowed, what to do."""
from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from temporal_nets import Explicit, at_rest, chain, inputs, lif, starts, weighted
from torch import nn

from shared_core.errors import MemextError
from shared_core.temporal import online_train_step, unroll


def refused(message: str, *parts: str):
    """The message, and all parts, in one MemextError. Both are read literally."""
    every = "".join(f"(?=[\\s\\S]*{re.escape(part)})" for part in (message, *parts))
    return pytest.raises(MemextError, match=every)


# name -> (positional arguments after the net, options, parts of the message)
ARGUMENTS = {
    "method": (("bptt",), {}, ("method is 'bptt'", "store, checkpoint, reverse, online")),
    "method None": ((None,), {}, ("method is None", "store")),
    "final_state": ((), dict(final_state="kept"), ("final_state is 'kept'", "detached, attached")),
    "steps_at_once 0": ((), dict(steps_at_once=0), ("steps_at_once is 0", "a number, 'auto' or 'fast'")),
    "steps_at_once True": ((), dict(steps_at_once=True), ("steps_at_once is True", "'auto'")),
    "steps_at_once 2.0": ((), dict(steps_at_once=2.0), ("steps_at_once is 2.0", "'auto'")),
    "steps_at_once word": ((), dict(steps_at_once="all"), ("steps_at_once is 'all'", "'fast'")),
    "steps_at_once online": (("online",), dict(steps_at_once=2), ("'online' goes step by step", "'reverse'")),
    "steps_at_once store": (("store",), dict(steps_at_once="auto"), ("'store' goes step by step", "'checkpoint'")),
    "every 0": ((), dict(every=0), ("every is 0", "at least 1, or None")),
    "every True": ((), dict(every=True), ("every is True",)),
    "every 2.5": ((), dict(every=2.5), ("every is 2.5", "at least 1")),
    "skip 1": (("checkpoint",), dict(skip=1.0), ("skip is 1.0", "0 <= skip < 1")),
    "skip below 0": (("checkpoint",), dict(skip=-0.1), ("skip is -0.1", "0 <= skip < 1")),
    "skip reverse": (("reverse",), dict(skip=0.5), ("skip is 0.5", "'reverse'", "with method='checkpoint'")),
    "skip at once": (("checkpoint",), dict(skip=0.5, steps_at_once=2), ("steps_at_once=2", "and steps_at_once=1")),
    "steps reverse": ((), dict(steps=[1]), ("steps is [1]", "'reverse'", "with method='online'")),
    "steps outside": (("online",), dict(steps=[1, 4]), ("steps is [1, 4]", "0 to 3")),
    "steps below 0": (("online",), dict(steps=[-1]), ("steps is [-1]", "0 to 3")),
    "steps float": (("online",), dict(steps=[1.0]), ("steps is [1.0]", "0 to 3")),
    "tolerance 0": ((), dict(tolerance=0.0), ("tolerance is 0.0", "between 0 and 1")),
    "tolerance 1": ((), dict(tolerance=1), ("tolerance is 1", "between 0 and 1")),
    "tolerance checkpoint": (("checkpoint",), dict(tolerance=1e-5), ("tolerance is 1e-05", "method='reverse'")),
    "tolerance at once": ((), dict(tolerance=1e-5, steps_at_once=33), ("steps_at_once is 33", "at most 32")),
    "num_steps 0": ((), dict(num_steps=0), ("num_steps is 0", "at least 1")),
    "num_steps True": ((), dict(num_steps=True), ("num_steps is True", "at least 1")),
    "num_steps 2.0": ((), dict(num_steps=2.0), ("num_steps is 2.0", "at least 1")),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_options(case):
    given, options, parts = ARGUMENTS[case]
    net = at_rest(chain())
    with refused("unroll: ", *parts):
        unroll(net, inputs(4), *given, **options)
    assert not net[1].mem.any(), "the net was called"


# what is no number, or no sequence, is refused in the same words
WRONG_TYPES = {
    "tolerance": (("reverse",), dict(tolerance="small"), "tolerance is 'small'"),
    "skip": (("checkpoint",), dict(skip="half"), "skip is 'half'"),
    "steps": (("online",), dict(steps=3), "steps is 3"),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_options_of_a_wrong_type(case):
    given, options, part = WRONG_TYPES[case]
    with refused("unroll: ", part):
        unroll(chain(), inputs(4), *given, **options)


INPUTS = {
    "no steps": (torch.zeros(0, 3, 6), {}, ("shape (0, 3, 6)", "T >= 1", "num_steps=T")),
    "a single value": (torch.tensor(1.0), {}, ("shape ()", "[T, *]", "time first")),
    "a list": ([torch.zeros(3, 6)], {}, ("x_seq is list", "a tensor [T, *]", "function t -> tensor")),
    "None": (None, {}, ("x_seq is NoneType", "[T, *]")),
    "a function without num_steps": (lambda t: torch.zeros(3, 6), {}, ("x_seq is a function", "pass num_steps=T")),
}


@pytest.mark.parametrize("method", ["store", "checkpoint", "reverse", "online"])
@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case, method):
    x, options, parts = INPUTS[case]
    with refused("unroll: ", *parts):
        unroll(chain(), x, method, **options)


@pytest.mark.parametrize("method", ["store", "checkpoint", "reverse", "online"])
@pytest.mark.parametrize("state", [(), (1.0,), (None,), (torch.zeros(1), "mem"), 3], ids=repr)
def test_states(state, method):
    with refused("unroll: state is", "a tuple of tensors", "in the order"):
        unroll(Explicit().step, inputs(4), method, state=state)


@pytest.mark.parametrize("method", ["store", "checkpoint", "reverse", "online"])
def test_what_the_step_returns(method):
    x, net = inputs(4), Explicit()

    def flat(x, mem1, mem2):
        out, (mem1, mem2) = net.step(x, mem1, mem2)
        return out[0], mem1, mem2

    def fewer(x, mem1, mem2):
        out, (mem1, mem2) = net.step(x, mem1, mem2)
        return out, mem2

    with refused("the step returned tuple of 3", "return two things", "(outputs, state)"):
        unroll(flat, x, method, state=starts())
    with refused("the step returned Tensor", "return two things"):
        unroll(lambda x, *mems: net.step(x, *mems)[0][0], x, method, state=starts())
    with refused("the step returned 1 states; 2 were given"):
        unroll(fewer, x, method, state=starts())
    hidden = chain()
    for value, shown in ((None, "NoneType None"), (1.5, "float 1.5")):
        with refused(f"the step returned {shown}", "a tensor, or a tuple, list or dict"):
            unroll(lambda x, v=value: (hidden(x), v)[1], x, method)
    with refused("the step returned tuple of 2", "a tensor, or a tuple"):
        unroll(lambda x: (hidden(x)[0], "mem"), x, method)


@pytest.mark.parametrize("method", ["checkpoint", "reverse", "online"])
def test_steps_of_different_shapes(method):
    calls = []

    class Growing(nn.Module):
        def forward(self, x):
            calls.append(0)
            return x[:, :len(calls)]

    with refused("step 1 returned shape (3, 2), step 0 (3, 1)", "every step must return the same shapes"):
        unroll(nn.Sequential(nn.Linear(6, 6), Growing()), inputs(4), method)


# ---- steps at once ----

class Unknown(nn.Module):
    def forward(self, x):
        return x


MERGED = {
    "own module": (lambda: nn.Sequential(nn.Linear(6, 5), Unknown(), lif()), "1 (Unknown) is not known to treat"),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), Unknown()), lif()), "0.1 (Unknown) is not known"),
    "batch norm in training": (lambda: chain(between=[nn.BatchNorm1d(12)]), "1 (BatchNorm1d) is not known"),
    "dropout in training": (lambda: chain(between=[nn.Dropout(0.5)]), "1 (Dropout) is not known"),
    "a module that is no chain": (lambda: Wrapped(), "the module (Wrapped) is not known"),
    "a function": (lambda: Wrapped().forward, "it is a function"),
}


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = chain()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("case", MERGED)
def test_steps_that_cannot_be_merged(case):
    make, why = MERGED[case]
    with refused("steps_at_once is 4, but these steps cannot be merged", why, "Use steps_at_once=1"):
        unroll(make(), inputs(8), "reverse", steps_at_once=4)
    for option in ("auto", "fast"):  # these two do what can be done
        assert unroll(make(), inputs(8), "reverse", steps_at_once=option) is not None


def test_more_steps_that_cannot_be_merged():
    with refused("cannot be merged", "its states are handed in with state="):
        unroll(Explicit().step, inputs(4), state=starts(), steps_at_once=2)
    with refused("cannot be merged", "its input is a function"):
        unroll(chain(), lambda t: torch.zeros(3, 6), num_steps=4, steps_at_once=2)
    net = chain().eval()
    net[1].forward = type(net[1]).forward.__get__(net[1])
    with refused("steps_at_once: forward was replaced on a Leaky object", "use steps_at_once=1"):
        unroll(net, inputs(4), steps_at_once=2)
    assert "forward" in vars(net[1]) and "forward" not in vars(net[3])


# ---- in the backward pass ----

def test_backward():
    for method in ("checkpoint", "reverse", "online"):
        net = at_rest(chain())
        with refused("double backward (create_graph=True)", "Use method='store'"):
            torch.autograd.grad(weighted(unroll(net, inputs(4), method)), list(net.parameters()), create_graph=True)
        held = {nn.Parameter(torch.tensor(1.1))}  # a set: its members cannot be exchanged for others
        at_rest(net)
        out = unroll(lambda x, net=net, held=held: net(x * next(iter(held))), inputs(4), method)
        with refused("a tensor that needs a gradient", "or in a set", "make it a parameter of the module"):
            weighted(out).backward()


def test_division_refuses_a_state_read_outside_of_its_neuron():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 5), lif(beta=0.9)

        def forward(self, x):
            return self.lif(self.fc(x) + 0.1 * self.lif.mem.sum())

    net = Reads()
    net.lif.mem = torch.zeros(3, 5)
    loss = weighted([unroll(net, inputs(30), "reverse", tolerance=1e-4)])
    with refused("reads a neuron's state outside of the neuron", "use tolerance=None (replay)"):
        loss.backward()


# ---- online_train_step ----

ONLINE = {
    "k and steps": (inputs(4), dict(k=2, steps=[1]), ("k=2 and steps=[1]", "give one of them")),
    "k 0": (inputs(4), dict(k=0), ("k is 0", "from 1 to 4")),
    "k 5": (inputs(4), dict(k=5), ("k is 5", "from 1 to 4")),
    "k True": (inputs(4), dict(k=True), ("k is True", "from 1 to 4")),
    "k 1.5": (inputs(4), dict(k=1.5), ("k is 1.5",)),
    "no step": (inputs(4), dict(steps=[]), ("steps is []", "0 to 3")),
    "a step outside": (inputs(4), dict(steps=[4]), ("steps is [4]", "0 to 3")),
    "no steps": (inputs(4)[:0], {}, ("x_seq is (0, 3, 6)", "T >= 1")),
    "a list": ([1, 2], {}, ("x_seq is list", "tensor [T, *]")),
}


@pytest.mark.parametrize("case", ONLINE)
def test_online_train_step(case):
    x, options, parts = ONLINE[case]
    with refused("online_train_step: ", *parts):
        online_train_step(chain(), x, lambda out, t: out[1].sum(), **options)


@pytest.mark.parametrize("value", [None, 0.5, torch.zeros(2)], ids=repr)
def test_losses_that_are_none(value):
    with refused("loss_fn returned", "at step 0", "a scalar tensor"):
        online_train_step(chain(), inputs(4), lambda out, t: value)


# ---- frameworks ----

def test_no_framework_is_imported():
    code = ("import sys, torch; from shared_core.temporal import unroll\n"
            "assert 'snntorch' not in sys.modules and 'spikingjelly' not in sys.modules\n"
            "try: unroll(torch.nn.Linear(2, 2), torch.zeros(3, 2))\n"
            "except ValueError as e: print(type(e).__name__, e)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MemextError temporal: neither SpikingJelly nor snnTorch is imported" in done.stdout, done.stderr
    assert "import the framework" in done.stdout


def test_step_mode_m():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron

    net = nn.Sequential(layer.Linear(6, 5), neuron.IFNode(step_mode="m"))
    for call in (lambda: unroll(net, inputs(4)), lambda: online_train_step(net, inputs(4), lambda out, t: out.sum())):
        with refused("unroll: 1 (IFNode) has step_mode='m'", "set_step_mode(net, 's')"):
            call()


def test_a_net_without_neurons_is_fine():
    """A chain of stateless layers is stepped through all the same."""
    net, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), inputs(4)
    assert torch.equal(unroll(net, x), torch.stack([net(r) for r in x]))
