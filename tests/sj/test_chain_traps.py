"""Where recomputing, linking nodes and writing in place could go wrong without a word: hooks, shared gradients, graphs
that are used twice, values that change under way. Everything is compared with the framework's own net."""
import copy
import gc
import weakref
from functools import lru_cache

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from training_steps import METHOD_PARAMS, METHODS, assert_equal, assert_same_gradients, convert, one_thread
from zoo import assert_awake, lif, wake

from shared_core.errors import MemextError

__all__ = ["one_thread"]  # a fixture

SAVING = [p for p in METHOD_PARAMS if METHODS[p.values[0]][0] != "neuron"]
LEVELS = ("x", "y", "h", "s", "y2", "h2", "s2")


class Tapped(nn.Module):
    """conv, norm, neuron, twice. Whoever calls it may look at every tensor between, or put another in its place."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.lif = layer.Conv2d(3, 6, 3, padding=1, step_mode="m"), _norm(), lif()
        self.conv2, self.bn2, self.lif2 = layer.Conv2d(6, 6, 3, padding=1, step_mode="m"), _norm(), lif(v_reset=None)

    def forward(self, x, tap=lambda level, t: t, carry=False):
        if not carry:
            functional.reset_net(self)
        for level, part in zip(LEVELS[1:], self.children()):
            x = tap(level, part(x))
        return x


def _norm():
    bn = layer.BatchNorm2d(6, step_mode="m")
    nn.init.uniform_(bn.weight, -1.5, 1.5)
    return bn


@lru_cache(maxsize=2)
def base(samples=2):
    """(net, input, gradient of its output)"""
    torch.manual_seed(1)
    net, x = Tapped(), torch.randn(4, samples, 3, 8, 8)
    with torch.random.fork_rng():
        assert_awake(wake(net, x), x)
    return net, x, torch.randn(4, samples, 6, 8, 8)


# The large batch is one whose backward "memory" goes through in parts.
@pytest.fixture(params=[*METHOD_PARAMS, "memory large"])
def method(request):
    return request.param


def grads(net, x):
    found = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    return found | {"input": x.grad.clone()}


def both(method, run):
    """run(net, x, g) on a native and a retrofitted net: y and "exact ..." bit for bit, other tensors as gradients."""
    method, *large = method.split()
    net, x, g = base(*(10 for _ in large))
    results = []
    for n in (copy.deepcopy(net), convert(copy.deepcopy(net), method)):
        leaf = x.clone().requires_grad_()
        out = run(n, leaf, g.clone()) or {}
        results.append(grads(n, leaf) | out)
    native, ours = results
    for name in [k for k in native if k == "y" or k.startswith("exact")]:
        a, b = ours.pop(name), native.pop(name)
        assert_equal(a, b, name) if isinstance(b, torch.Tensor) else _equal(a, b, name)
    assert_same_gradients(ours, native, method)


def _equal(a, b, name):
    assert a == b, (name, a, b)


# ---- hooks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [None, 2.0])
@pytest.mark.parametrize("levels", [*((level,) for level in LEVELS), LEVELS], ids="".join)
def test_tensor_hooks_see_and_change_gradients(method, levels, change):
    def run(net, x, g):
        seen = {}

        def hook(t, level):
            def save(grad):
                seen[f"at {level}"] = grad.clone()
                return None if change is None else grad * change
            if level in levels:
                t.register_hook(save)
            return t

        y = net(hook(x, "x"), lambda level, t: hook(t, level))
        y.backward(g)
        return {"y": y.detach(), **seen}

    both(method, run)


def test_a_hook_that_keeps_its_gradient_finds_it_unchanged(method):
    def run(net, x, g):
        kept = []

        def hook(level, t):
            t.register_hook(lambda grad: kept.append((level, grad, grad.clone())))
            return t

        net(hook("x", x), hook).backward(g)
        net(x, hook).backward(g)
        assert len(kept) == 2 * len(LEVELS)
        for level, grad, was in kept:
            assert torch.equal(grad, was), f"the gradient at {level} was overwritten"

    both(method, run)


KEEP = {"detached": lambda g: g.detach(), "data": lambda g: g.data, "a view": lambda g: g.view(-1),
        "a part": lambda g: g[1:], "an array": lambda g: g.numpy(), "storage": lambda g: g.untyped_storage()}


@pytest.mark.parametrize("how", KEEP)
def test_a_hook_that_keeps_something_of_its_gradient(method, how):
    def run(net, x, g):
        kept = []

        def tap(level, t):
            t.register_hook(lambda grad: kept.append((level, KEEP[how](grad), copy.deepcopy(KEEP[how](grad)))))
            return t

        net(x, tap).backward(g)
        for level, part, was in kept:
            same = list(part) == list(was) if how == "storage" else (part == was).all()
            assert same, f"the gradient at {level} was overwritten"

    both(method, run)


def test_hooks_on_nodes(method):
    """Node hooks are handed the gradients that went in and that came out."""
    def run(net, x, g):
        seen, kept = {}, []

        def tap(level, t):
            t.grad_fn.register_prehook(lambda out: kept.append((level, out[0], out[0].clone())))
            t.grad_fn.register_hook(lambda into, out: kept.append((level, out[0], kept[-1][2])))
            return t

        net(x, tap).backward(g)
        assert len(kept) >= 6
        for level, grad, was in kept:
            assert torch.equal(grad, was), f"the gradient into the node of {level} was overwritten"
        return seen

    both(method, run)


class _Keeping(torch.autograd.Function):
    """Of two copies of its input; keeps the gradient it is handed, and hands it on."""

    kept = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        _Keeping.kept.append((g, g.clone()))
        return g, g


def test_a_function_that_keeps_its_gradient_and_hands_it_on(method):
    def run(net, x, g):
        _Keeping.kept.clear()
        y = net.lif(net.bn(net.conv(x)))
        y = _Keeping.apply(y, net.lif2(net.bn2(net.conv2(y))))
        y = _Keeping.apply(y, net.lif2(net.bn2(net.conv2(y))))
        y.backward(g)
        assert all(torch.equal(a, b) for a, b in _Keeping.kept), "the gradient was overwritten"
        return {"y": y.detach()}

    both(method, run)


def test_retain_grad(method):
    def run(net, x, g):
        kept = []

        def tap(level, t):
            t.retain_grad()
            kept.append((level, t))
            return t

        y = net(x, tap)
        y.backward(g)
        first = {f"at {level}": t.grad for level, t in kept}
        was = {level: grad.clone() for level, grad in first.items()}
        net(x).backward(g)
        assert all(torch.equal(first[level], was[level]) for level in was), "a later step wrote into them"
        return {"y": y.detach(), **was}

    both(method, run)


@pytest.mark.parametrize("where", ["all", "conv", "bn", "lif"])
def test_module_hooks(method, where):
    def run(net, x, g):
        seen, calls = {}, []
        for name, m in net.named_modules():
            if where != "all" and name != where:
                continue
            m.register_forward_pre_hook(lambda m, args, name=name: calls.append(("pre", name)))
            m.register_forward_hook(lambda m, args, out, name=name: calls.append(("forward", name, tuple(out.shape))))
            m.register_full_backward_pre_hook(
                lambda m, out, name=name: seen.update({f"out {name}": out[0].clone()}))
            m.register_full_backward_hook(
                lambda m, into, out, name=name: seen.update({f"in {name}": into[0].clone()}))
        y = net(x)
        y.backward(g)
        return {"y": y.detach(), "exact calls": calls, **seen}

    both(method, run)


def test_forward_hooks_that_replace_values(method):
    def run(net, x, g):
        net.conv.register_forward_hook(lambda m, args, out: out * 1.5)
        net.bn.register_forward_pre_hook(lambda m, args: (args[0] - 0.1,))
        net.lif.register_forward_hook(lambda m, args, out: out.clone())
        net.conv2.register_forward_hook(lambda m, args, out: out.detach() + out * 0.5)
        net.bn2.register_full_backward_hook(lambda m, into, out: (into[0] * 2,))
        y = net(x)
        y.backward(g)
        return {"y": y.detach()}

    both(method, run)


def test_parameter_hooks_fire_once_a_step(method):
    def run(net, x, g):
        calls = []
        for name, p in net.named_parameters():
            p.register_hook(lambda grad, name=name: calls.append(("hook", name)))
            p.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(("accumulated", name)))
        for step in range(2):
            calls.append(step)
            net(x).backward(g)
        assert len(calls) == 2 + 2 * 2 * len([*net.parameters()])
        return {"exact calls": sorted(map(str, calls))}

    both(method, run)


def test_a_parameter_hook_changes_the_gradient(method):
    def run(net, x, g):
        for p in net.parameters():
            p.register_hook(lambda grad: grad * 3)
        net(x).backward(g)

    both(method, run)


@pytest.mark.parametrize("level", ["y", "h", "s", "y2", "h2", "s2"])
def test_a_hook_writes_into_its_gradient(method, level):
    """Clipping, for one. What was computed from the gradient before (sums over the channels) is not valid any more."""
    def run(net, x, g):
        def tap(at, t):
            if at == level:
                t.register_hook(_clip)
            return t

        net(x, tap).backward(g)

    both(method, run)


def _clip(grad):
    grad.clamp_(-0.5, 0.3)


# ---- shared gradients: what is not ours alone must not be written into ----------------------------------------------

def _chain(net, x):
    return net.lif(net.bn(net.conv(x)))


def _second(net, s):
    return net.lif2(net.bn2(net.conv2(s)))


SHARED = {
    "residual": lambda net, x: (s := _chain(net, x)) + _second(net, s),
    "residual around a neuron": lambda net, x: (h := net.bn(net.conv(x))) + net.lif(h),
    "residual around a norm": lambda net, x: (y := net.conv(x)) + net.lif(net.bn(y)),
    "residual around the chain": lambda net, x: (s := _chain(net, x)) + s + net.lif2(net.bn2(net.conv2(s) + s)),
    "norm output into two neurons": lambda net, x: net.lif(h := net.bn(net.conv(x))) + net.lif2(h),
    "conv output into two norms": lambda net, x: net.lif(net.bn(y := net.conv(x))) + net.lif2(net.bn2(y)),
    "one norm twice on one input": lambda net, x: net.lif(net.bn(y := net.conv(x))) + net.lif2(net.bn(y)),
    "same block twice": lambda net, x: _second(net, _second(net, _chain(net, x))),
    "twice the same spikes": lambda net, x: (s := _second(net, _chain(net, x))) + s,
    "two branches, one sum": lambda net, x: net.lif(net.bn(net.conv(x))) + net.lif2(net.bn2(net.conv(x.flip(0)))),
    "cat": lambda net, x: torch.cat([s := _chain(net, x), _second(net, s)], 2),
    "stack": lambda net, x: torch.stack([s := _chain(net, x), _second(net, s)]),
    "views": lambda net, x: _second(net, _chain(net, x).flatten(2).unflatten(2, (6, 8, 8))).flatten(1),
    "expanded": lambda net, x: _second(net, _chain(net, x)).unsqueeze(0).expand(3, -1, -1, -1, -1, -1),
    "mean over time": lambda net, x: _second(net, _chain(net, x)).mean(0),
    "a slice": lambda net, x: _second(net, _chain(net, x))[1:, :, ::2],
    "unbound": lambda net, x: sum(w * t for w, t in enumerate(_second(net, _chain(net, x)).unbind(0))),
    "permuted": lambda net, x: _second(net, _chain(net, x)).permute(4, 0, 2, 1, 3),
}


@pytest.mark.parametrize("loss", ["own", "sum"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_gradients(method, name, loss):
    def run(net, x, _):
        kept = []
        out = SHARED[name](net, x)
        out.register_hook(lambda grad: kept.append((grad, grad.clone())))
        if loss == "sum":  # its gradient is one number, expanded
            out.sum().backward()
        else:
            g = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
            was = g.clone()
            out.backward(g)
            assert torch.equal(g, was), "the caller's gradient was overwritten"
        assert torch.equal(*kept[0]), "the gradient at the output was overwritten"
        return {"y": out.detach()}

    both(method, run)


def test_the_callers_gradient_is_left_alone(method):
    def run(net, x, g):
        was = g.clone()
        found = torch.autograd.grad(net(x), [x, *net.parameters()], g)
        assert torch.equal(g, was)
        x.grad = found[0]
        return {f"of {name}": t for name, t in zip(["input", *dict(net.named_parameters())], found)}

    both(method, run)


def test_gradients_of_one_step_survive_the_next(method):
    """What was handed out as .grad is the user's, and is no buffer of ours."""
    def run(net, x, g):
        net(x).backward(g)
        kept = [(t.grad, t.grad.clone()) for t in (x, *net.parameters())]
        net.zero_grad()
        x.grad = None
        net(x * 0.5).backward(g)
        assert all(torch.equal(a, b) for a, b in kept)

    both(method, run)


# ---- graphs -------------------------------------------------------------------------------------------------------

def test_retain_graph_and_a_second_backward(method):
    def run(net, x, g):
        y = net(x)
        y.backward(g, retain_graph=True)
        first = grads(net, x)
        net.zero_grad()
        x.grad = None
        y.backward(g, retain_graph=True)
        for name, grad in grads(net, x).items():
            assert_equal(grad, first[name], f"second backward: {name}")
        y.backward(0.5 * g)  # and one more on top, that frees the graph
        with pytest.raises(RuntimeError, match="second time"):
            y.backward(g)
        return {"y": y.detach()}

    both(method, run)


def test_a_second_forward_before_a_second_backward_on_the_first_graph(method):
    def run(net, x, g):
        y = net(x)
        y.backward(g, retain_graph=True)
        net(x + 1).sum().backward()
        y.backward(g)
        return {"y": y.detach()}

    both(method, run)


@pytest.mark.parametrize("order", ["first first", "last first", "together"])
def test_several_graphs_at_once(method, order):
    def run(net, x, g):
        losses = []
        for scale in (1.0, 0.7, -0.4):
            losses.append((net(x * scale) * g).sum())
        for value in {"first first": losses, "last first": losses[::-1], "together": [sum(losses)]}[order]:
            value.backward()
        return {"exact mean": net.bn.running_mean.clone()}

    both(method, run)


def test_gradients_of_parts(method):
    """autograd.grad with respect to some parameters, to values between, and to nothing before them."""
    def run(net, x, g):
        found, values = {}, {}
        y = net(x, lambda level, t: values.setdefault(level, t))
        for names in (("bn.weight",), ("conv2.weight", "bn.bias"), ("conv.weight", "conv.bias")):
            params = [p for name, p in net.named_parameters() if name in names]
            found |= {f"of {name}": t for name, t in zip(names, torch.autograd.grad(y, params, g, retain_graph=True))}
        for i, t in enumerate(torch.autograd.grad(y, [values[level] for level in LEVELS[1:-1]], g, retain_graph=True)):
            found[f"at {LEVELS[1 + i]}"] = t
        for level in ("y", "h", "s"):
            (found[f"only {level}"],) = torch.autograd.grad(y, [values[level]], g, retain_graph=True)
        y.backward(g, inputs=[x, net.conv.weight, net.bn2.bias])
        assert net.bn.weight.grad is None
        return found

    both(method, run)


def test_what_one_backward_left_behind_is_not_used_by_another(method):
    """A backward pass that ends at the neuron's input, then others that reach the norm past the neuron, and the conv
    past the norm, with gradients that may lie where the first one's did."""
    def run(net, x, g):
        found, values = {}, {}
        y = net(x, lambda level, t: values.setdefault(level, t))
        loose = (values["h"] * g).sum(), (values["y"] * g).sum()
        for i in range(3):
            torch.autograd.grad(y, [values["h"]], g, retain_graph=True)
            for k, z in enumerate(loose):
                of = torch.autograd.grad(z, [x, net.conv.weight, *([net.bn.weight] if k == 0 else [])],
                                         retain_graph=True)
                found |= {f"{level} {k} {i}": t for level, t in zip(("x", "conv", "bn"), of)}
            torch.autograd.grad(y, [values["y"]], 2 * g, retain_graph=True)
        y.backward(g)
        return found

    both(method, run)


def test_backward_from_the_membrane_and_through_carried_state(method):
    """The state is an output too: a loss on it, and a second sequence that starts from it."""
    def run(net, x, g):
        y = net(x)
        y = y + net(x * 0.5, carry=True)
        ((y * g).sum() + (net.lif.v * g[0]).sum() + net.lif2.v.square().sum()).backward()
        functional.detach_net(net)
        net(x, carry=True).backward(g)
        return {"y": y.detach(), "exact v": net.lif.v.detach()}

    both(method, run)


def test_backward_from_the_membrane_alone(method):
    def run(net, x, g):
        net(x)
        (net.lif.v * g[0]).sum().backward()

    both(method, run)


@pytest.mark.parametrize("method", SAVING)
def test_double_backward_is_refused(method):
    net, x, g = base()
    net, x = convert(copy.deepcopy(net), method), x.clone().requires_grad_()
    with pytest.raises(MemextError, match=r"double backward.*create_graph"):
        torch.autograd.grad((net(x) * g).sum(), x, create_graph=True)
    net(x).backward(g)
    assert x.grad.any(), "and it goes on working"


def test_nothing_is_kept_alive(method):
    """Nodes that know each other make no cycle: a graph is freed when its last tensor is, without the collector."""
    net, x, g = base()
    net = convert(copy.deepcopy(net), method.split()[0])
    gc.collect()
    gc.disable()
    try:
        for finish in (lambda y: y.backward(g), lambda y: None):
            values = {}
            y = net(x.clone().requires_grad_(), lambda level, t, values=values: values.setdefault(level, t))
            refs = [weakref.ref(t.untyped_storage()) for t in values.values()]
            nodes = [weakref.ref(t.grad_fn) for t in values.values() if isinstance(t.grad_fn, torch.autograd.Function)]
            finish(y)
            functional.reset_net(net)
            del y, values
            assert not [r for r in (*refs, *nodes) if r() is not None]
    finally:
        gc.enable()


# ---- values that change between forward and backward -----------------------------------------------------------------

def same_or_refused(method, run):
    """Equal to native, or Torch's error about a variable modified in place: never a wrong gradient without a word."""
    try:
        both(method, run)
    except RuntimeError as problem:
        assert "modified by an inplace operation" in str(problem), problem


def _add(t):
    t += 1
    return t


def _halve_a_part(t):
    t[1:] *= 0.5
    return t


IN_PLACE = {"add": _add, "relu": torch.relu_, "mul": lambda t: t.mul_(1.5), "part": _halve_a_part,
            "zero": lambda t: t.masked_fill_(torch.eye(8).bool(), 0.0)}


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("level", ["y", "h", "s", "y2", "h2", "s2"])
def test_values_changed_in_place_before_they_are_used(method, level, change):
    def run(net, x, g):
        y = net(x, lambda at, t: IN_PLACE[change](t) if at == level else t)
        y.backward(g)
        return {"y": y.detach()}

    same_or_refused(method, run)


@pytest.mark.xfail(reason="writing through .data leaves no trace that a node could see; see docs", strict=False)
@pytest.mark.parametrize("level", ["y", "h", "s", "y2", "h2", "s2"])
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_values_changed_behind_autograds_back(method, level, what):
    def run(net, x, g):
        def tap(at, t):
            if at == level and what == "value":
                t.data.mul_(1.5)
            elif at == level:
                t.register_hook(lambda grad: _clip(grad.data))
            return t

        y = net(x, tap)
        y.backward(g)
        return {"y": y.detach()}

    both(method, run)


def _backward_or_again(net, x, y, g, undo=lambda: None):
    """Where something a backward needs has changed, native refuses, or works because it kept something else, and ours
    refuses, or works: the gradient is the same. After a refusal: what it would have been, from the start."""
    try:
        y.backward(g)
    except RuntimeError as problem:
        assert "modified by an inplace operation" in str(problem), problem
        undo()
        net.zero_grad()
        x.grad = None
        net(x).backward(g)


@pytest.mark.parametrize("level", ["y", "h", "s", "y2", "h2", "s2"])
def test_values_changed_in_place_after_they_were_used(method, level):
    def run(net, x, g):
        values = {}
        y = net(x, lambda at, t: values.setdefault(at, t)) * 1.0
        values[level].mul_(2)
        _backward_or_again(net, x, y, g)

    both(method, run)


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "conv2.weight", "bn2.bias"])
def test_parameters_changed_between_forward_and_backward(method, name):
    """A value rebuilt with other weights would be another value."""
    def run(net, x, g):
        y = net(x)
        with torch.no_grad():
            p = dict(net.named_parameters())[name]
            old = p.clone()
            p.add_(0.5)
        _backward_or_again(net, x, y, g, undo=lambda: setattr(p, "data", old))

    both(method, run)


def test_running_statistics_changed_between_forward_and_backward(method):
    def run(net, x, g):
        net(x)
        net.bn.eval()
        y = net(x)
        with torch.no_grad():
            net.bn2.running_mean.add_(1)  # in training mode: not used
        _backward_or_again(net, x, y, g)

    both(method, run)


def test_statistics_that_move_between_forward_and_backward(method):
    def run(net, x, g):
        y = net(x)
        with torch.no_grad():
            net(3 * x)
        y.backward(g)
        return {"y": y.detach(), "exact mean": net.bn2.running_mean.clone()}

    both(method, run)


def test_the_methods_change_between_forward_and_backward(method):
    def run(net, x, g):
        y = net(x)
        if any("memext" in type(m).__module__ or "shared_core" in type(m).__module__ for m in net.modules()):
            from sj_memext import restore
            restore(net)
        else:
            convert(net, method.split()[0])
        functional.reset_net(net)
        (y * g).sum().backward()
        return {"y": y.detach()}

    both(method, run)


def test_the_mode_changes_between_forward_and_backward(method):
    def run(net, x, g):
        y = net(x)
        net.eval()
        y.backward(g)
        y = net(x)
        net.train()
        y.backward(g)
        return {"y": y.detach()}

    both(method, run)
