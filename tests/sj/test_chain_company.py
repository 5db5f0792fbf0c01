"""A retrofitted net among the other tools that training uses: checkpoint, hooks on saved tensors, compile, DDP, copies,
functional calls, changes of dtype, other retrofits."""
import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.distributed
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.autograd import graph
from torch.utils.checkpoint import checkpoint
from training_steps import (
    METHOD_PARAMS,
    assert_equal,
    assert_same_gradients,
    assert_same_step,
    convert,
    native_run,
    neurons,
    one_thread,
    set_params,
    train_step,
)
from zoo import ZOO, assert_awake, lif, plif, wake

from sj_memext import report, restore

__all__ = ["one_thread"]  # a fixture


def make(dtype=torch.float32):
    """(net, input), awake. Picklable: nothing but the framework's modules."""
    torch.manual_seed(4)
    pack = layer.SeqToANNContainer
    net = nn.Sequential(
        pack(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)), lif(),
        layer.MaxPool2d(2, step_mode="m"), layer.Conv2d(6, 5, 3, step_mode="m"), layer.BatchNorm2d(5, step_mode="m"),
        plif(), layer.Flatten(step_mode="m"), layer.Dropout(0.2, step_mode="m"), nn.Linear(20, 8), lif(),
        nn.Linear(8, 4))
    net, x = net.to(dtype), torch.randn(4, 3, 3, 8, 8, dtype=dtype)
    with torch.random.fork_rng():
        assert_awake(wake(net, x), x)
    return net, x


@pytest.fixture(params=METHOD_PARAMS)
def method(request):
    return request.param


def compare(ours, net, x, steps=2, **how):
    """Training steps of `ours` against those of the native `net`."""
    for i, wanted in enumerate(native_run(net, x, steps=steps)):
        set_params(ours, wanted.params)
        assert_same_step(train_step(ours, x, seed=i, **how), wanted, f"step {i}")


# ---- copies -------------------------------------------------------------------------------------------------------

def _saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), _saved],
                         ids=["deepcopy", "pickle", "torch.save"])
def test_copies(method, how):
    net, x = make()
    ours = convert(copy.deepcopy(net), method)
    train_step(ours, x)
    copied = how(ours)
    ours.load_state_dict(net.state_dict())
    copied.load_state_dict(net.state_dict())
    assert [type(m) for m in copied.modules()] == [type(m) for m in ours.modules()]
    assert report(copied).to_dict() == report(ours).to_dict()
    compare(copied, net, x)
    assert [type(m) for m in restore(copied).modules()] == [type(m) for m in net.modules()]
    assert type(ours[1]) is not neuron.LIFNode, "the original is not touched"


def test_checkpoints_of_either_load_into_the_other(method):
    net, x = make()
    ours = convert(make()[0], method)
    train_step(net, x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    assert list(ours.state_dict()) == list(net.state_dict())
    ours.load_state_dict(net.state_dict())
    compare(ours, net, x)
    net.load_state_dict(ours.state_dict())


# ---- retrofit after retrofit --------------------------------------------------------------------------------------

def test_twice_is_the_same_as_once(method):
    net, x = make()
    ours = convert(convert(copy.deepcopy(net), method), method)
    once = convert(copy.deepcopy(net), method)
    assert [type(m) for m in ours.modules()] == [type(m) for m in once.modules()]
    compare(ours, net, x)
    assert [type(m) for m in restore(ours).modules()] == [type(m) for m in net.modules()]


@pytest.mark.parametrize("before", METHOD_PARAMS)
def test_one_method_after_another(method, before):
    net, x = make()
    ours = convert(convert(copy.deepcopy(net), before), method)
    compare(ours, net, x)
    assert [type(m) for m in restore(ours).modules()] == [type(m) for m in net.modules()]
    ours.load_state_dict(net.state_dict())
    compare(convert(ours, before), net, x)


def test_a_part_first_then_all(method):
    net, x = make()
    ours = copy.deepcopy(net)
    convert(ours[:6], "compress" if method == "neuron" else "neuron")
    compare(convert(ours, method), net, x)
    assert [type(m) for m in restore(ours).modules()] == [type(m) for m in net.modules()]


def test_the_report_names_what_changed_and_what_did_not(method):
    net, _ = make()
    said = report(convert(net, method))
    assert {name for name, _, _ in said.changed} >= {"1", "5", "9"} and str(said)


# ---- types, modes, sizes ------------------------------------------------------------------------------------------

def test_double_after_the_retrofit(method):
    net, x = make()
    compare(convert(copy.deepcopy(net), method).double(), copy.deepcopy(net).double(), x.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_after_the_retrofit(method, dtype):
    """Against our own neurons alone, whose membrane is float32 (the framework's is in half precision)."""
    net, x = make()
    ours = convert(copy.deepcopy(net), method).to(dtype)
    reference = convert(copy.deepcopy(net), "neuron").to(dtype)
    a, b = train_step(ours, x.to(dtype)), train_step(reference, x.to(dtype))
    assert_equal(a.y, b.y, "output")
    for name, g in b.grads.items():
        # One rounding of each value that is rounded: 2^-8 (bfloat16) or 2^-11; a handful of them in a row.
        bound = {torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        weight = b.grads.get(name.removesuffix("bias") + "weight", g)
        assert (a.grads[name].float() - g.float()).norm() <= bound * max(g.float().norm(), weight.float().norm()), name


def test_moving_to_the_same_device_and_back_to_training(method):
    net, x = make()
    ours = convert(copy.deepcopy(net), method).to("cpu").eval().train().requires_grad_(False).requires_grad_(True)
    compare(ours, net, x)


def test_gradient_accumulation(method):
    net, x = make()
    ours, found = convert(copy.deepcopy(net), method), []
    for n in (net, ours):
        for i in range(3):
            functional.reset_net(n)
            torch.manual_seed(i)
            (n(x * (1 + i)).square().mean() / 3).backward()
        found.append({name: p.grad for name, p in n.named_parameters()})
    assert_same_gradients(found[1], found[0])
    assert torch.equal(ours[0][1].running_var, net[0][1].running_var)


def test_functional_call(method):
    """With parameters that are not the module's: they get the gradient, the module's get none."""
    net, x = make()
    results = []
    for n in (net, convert(copy.deepcopy(net), method)):
        params = {name: (p.detach() * 1.1).requires_grad_() for name, p in n.named_parameters()}
        torch.manual_seed(0)
        y = torch.func.functional_call(n, params, (x,))
        y.square().mean().backward()
        assert all(p.grad is None for p in n.parameters())
        results.append((y, params))
    (y, params), (y2, ours) = results
    assert torch.equal(y, y2)
    assert_same_gradients({name: p.grad for name, p in ours.items()}, {name: p.grad for name, p in params.items()})


# ---- checkpoint and hooks on saved tensors --------------------------------------------------------------------------

class Checkpointed(nn.Module):
    """All but the head is run again in the backward pass, from rest."""

    def __init__(self, body, head, reentrant):
        super().__init__()
        self.body, self.head, self.reentrant = body, head, reentrant

    def part(self, x):
        functional.reset_net(self.body)
        return self.body(x)

    def forward(self, x):
        return self.head(checkpoint(self.part, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("first", [1, 2, 6])
def test_torch_checkpoint_around_a_part(method, reentrant, first):
    """Cut between container and neuron, and behind neurons: links must not reach out of, or into, what is run again."""
    net, x = make()
    net = Checkpointed(net[:first], nn.Sequential(*net[first:]), reentrant)
    ours = convert(copy.deepcopy(net), method)
    compare(ours, net, x)
    assert len(neurons(ours)) == 3


@pytest.mark.parametrize("inside", [(0,), (1,), (0, 1), (2, 3), (3, 5), (1, 4)], ids=str)
def test_hooks_on_what_some_layers_save(method, inside):
    """A layer outside may not rebuild its input from what was saved inside: hooks may give that only once."""
    net, x = make()
    parts = [*net]
    net = nn.Sequential(*(Once(part) if i in inside else part for i, part in enumerate(parts)))
    ours = convert(copy.deepcopy(net), method)
    compare(ours, net, x)


class Once(nn.Module):
    """Its saved tensors may be asked for once."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        def unpack(kept):
            assert kept, "asked for twice"
            return kept.pop()

        with graph.saved_tensors_hooks(lambda t: [t], unpack):
            return self.inner(x)


@pytest.mark.parametrize("context", [lambda: graph.save_on_cpu(), lambda: graph.saved_tensors_hooks(
    lambda t: (t.clone(), t._version), lambda kept: kept[0].clone())], ids=["save_on_cpu", "clones"])
def test_hooks_on_saved_tensors(method, context):
    net, x = make()
    compare(convert(copy.deepcopy(net), method), net, x, context=context)


def test_hooks_see_all_that_is_kept(method):
    """Poisoned copies of what is saved must reach the result: nothing that matters hides outside the saved tensors."""
    net, x = make()
    ours = convert(copy.deepcopy(net), method)
    wanted = train_step(ours, x)
    other = convert(copy.deepcopy(net), method)
    with graph.saved_tensors_hooks(lambda t: t, lambda t: torch.zeros_like(t)):
        got = train_step(other, x)
    for name, g in got.grads.items():
        if name.endswith("weight"):
            assert not torch.equal(g, wanted.grads[name]), f"{name} does not come from saved tensors"


def test_anomaly_mode(method):
    net, x = make()
    with torch.autograd.detect_anomaly():
        compare(convert(copy.deepcopy(net), method), net, x, steps=1)


# ---- compile, distributed -------------------------------------------------------------------------------------------

# Seconds each. Under compile all methods run the same plain functions, so that one method stands for the others.
@pytest.mark.parametrize("method, order", [
    pytest.param(p.values[0], order, marks=[*p.marks] if (p.values[0], order) == ("balanced", "retrofit-then-compile")
                 else pytest.mark.slow)
    for p in METHOD_PARAMS for order in ("retrofit-then-compile", "compile-then-retrofit")])
def test_torch_compile(method, order):
    net, x = make()
    torch.compiler.reset()
    ours = copy.deepcopy(net)
    if order == "retrofit-then-compile":
        step = torch.compile(convert(ours, method), backend="eager")
    else:
        step = torch.compile(ours, backend="eager")
        step(x)
        functional.reset_net(ours)
        ours.load_state_dict(net.state_dict())
        convert(step, method)
    for i, wanted in enumerate(native_run(net, x, steps=2)):
        set_params(ours, wanted.params)
        got = train_step(step, x, seed=i)  # the compiled module names its parameters _orig_mod....
        got.grads, got.buffers = _without("_orig_mod.", got.grads), _without("_orig_mod.", got.buffers)
        assert_same_step(got, wanted, f"step {i}")


def _without(prefix, found):
    return {name.removeprefix(prefix): value for name, value in found.items()}


@pytest.mark.parametrize("name", ["spikformer", "sew_resnet18-ADD", "maxformer-cifar"])
def test_hooks_on_every_module_of_the_zoo_run_as_often(method, name):
    """Modules that our layers stand for are still called, with the same shapes."""
    net, x = ZOO[name].make()
    calls = {}
    for who, n in (("native", copy.deepcopy(net)), ("ours", convert(net, method))):
        calls[who] = []
        hooks = [m.register_forward_hook(lambda m, args, out, path=path, who=who: calls[who].append(
            (path, *(tuple(t.shape) for t in (*args, out))))) for path, m in n.named_modules()]
        train_step(n, x)
        for hook in hooks:  # a surrogate that is a default argument of its neuron's class outlives the net
            hook.remove()
    assert calls["ours"] == calls["native"]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True},
                                     {"gradient_as_bucket_view": True}], ids=lambda o: next(iter(o), "plain"))
def test_distributed_data_parallel(process_group, method, options):
    net, x = make()
    ours = convert(copy.deepcopy(net), method)
    wrapped = nn.parallel.DistributedDataParallel(ours, **options)
    calls = []
    for p in ours.parameters():
        p.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    for i, wanted in enumerate(native_run(net, x, steps=2)):
        set_params(ours, wanted.params)
        got = train_step(wrapped, x, seed=i)
        got.grads, got.buffers = _without("module.", got.grads), _without("module.", got.buffers)
        assert_same_step(got, wanted, f"step {i}")
    assert len(calls) == 2 * len([*ours.parameters()]), "once a step for each parameter"


def test_gradients_accumulated_without_sync(process_group, method):
    net, x = make()
    wrapped = nn.parallel.DistributedDataParallel(convert(copy.deepcopy(net), method))
    found = []
    for n, nothing in ((net, nullcontext), (wrapped, wrapped.no_sync)):
        for i, context in enumerate((nothing, nullcontext)):
            functional.reset_net(n)
            torch.manual_seed(i)
            with context():
                n(x).square().mean().backward()
        found.append({name.removeprefix("module."): p.grad for name, p in n.named_parameters()})
    assert_same_gradients(found[1], found[0])
