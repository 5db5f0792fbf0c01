"""The parts of a chain, one by one: ownership of gradients, links between nodes, stamps, what the graph proves."""
import pytest
import torch
from torch import nn

from shared_core import coding, surrogate
from shared_core.chain import linear, neuron, norm, policy, stamps
from shared_core.chain._links import link_to
from shared_core.chain._ownership import sole_owner
from shared_core.dynamics import LIF

RECOMPUTE = policy.Policy("recompute", "memory")
PLAIN = linear.ConvOptions((1, 1), (1, 1), (1, 1), False, (0, 0), 1)


class Ask(torch.autograd.Function):
    """Notes whether its gradient could be overwritten, and overwrites it if so."""

    answers: list[bool] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        owned = sole_owner(grads)
        Ask.answers.append(owned)
        g = grads[0]
        return g.mul_(10) if owned else g * 10


def answers(build):
    """What Ask nodes answered, in the order of the backward pass, and x's gradient."""
    Ask.answers.clear()
    x = torch.ones(2, 4, requires_grad=True)
    build(x).sum().backward()
    return list(Ask.answers), x.grad


def test_a_gradient_straight_from_an_operator_is_owned():
    found, grad = answers(lambda x: Ask.apply(Ask.apply(x)) * 3)
    assert found == [True, True] and torch.equal(grad, torch.full((2, 4), 300.0))


def test_a_gradient_through_a_view_is_owned():
    found, grad = answers(lambda x: Ask.apply(Ask.apply(x).view(8)) * 3)
    assert found == [True, True] and torch.equal(grad, torch.full((2, 4), 300.0))


@pytest.mark.parametrize("case, expected", [
    ("residual", 11.0 * 3), ("residual view", 11.0 * 3), ("expanded", 10.0), ("kept by a hook", 30.0),
    ("numpy in a hook", 30.0), ("base kept by a hook", 30.0), ("captured", 30.0)])
def test_a_shared_gradient_is_not_owned(case, expected):
    seen = []
    before = torch.full((2, 4), 3.0)

    def build(x):
        if case == "residual":
            return (x + Ask.apply(x)) * 3
        if case == "residual view":
            return (x.view(8) + Ask.apply(x.view(8))) * 3
        y = Ask.apply(x)
        if case == "kept by a hook":
            y.register_hook(seen.append)
        if case == "numpy in a hook":
            y.register_hook(lambda g: seen.append(g.numpy()))
        if case == "base kept by a hook":
            v = y.view(8)
            v.register_hook(seen.append)
            return v * 3
        return y if case == "expanded" else y * 3

    if case == "captured":
        x = torch.ones(2, 4, requires_grad=True)
        Ask.answers.clear()
        y = Ask.apply(x)
        grad, seen_grad = torch.autograd.grad((y * 3).sum(), [x, y])
        seen.append(seen_grad)
    else:
        _, grad = answers(build)
    assert Ask.answers == [False]
    assert torch.equal(grad, torch.full((2, 4), expected))
    for kept in seen:
        assert torch.equal(torch.as_tensor(kept).view(2, 4), before)


def test_retain_grad_keeps_the_native_value():
    x = torch.ones(2, 4, requires_grad=True)
    y = Ask.apply(x)
    y.retain_grad()
    (y * 3).sum().backward()
    assert torch.equal(y.grad, torch.full((2, 4), 3.0)) and torch.equal(x.grad, torch.full((2, 4), 30.0))


# ---- links ----

@pytest.fixture
def y():
    torch.manual_seed(0)
    x, w = torch.randn(6, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    return linear.conv(x, w, None, PLAIN, RECOMPUTE)


@pytest.mark.parametrize("see", [lambda y: y, lambda y: y.view(3, 2, 4, 8, 8), lambda y: y.flatten(1).unsqueeze(0),
                                 lambda y: y.permute(0, 2, 3, 1), lambda y: y.transpose(1, 2).transpose(1, 2)])
def test_a_producer_is_found_through_views(y, see):
    assert link_to(see(y)) is y.grad_fn


@pytest.mark.parametrize("see", [lambda y: y + 0, lambda y: y[1:], lambda y: y.clone(), lambda y: y.detach(),
                                 lambda y: y.mul_(2), lambda y: y.permute(1, 0, 2, 3).reshape(-1),
                                 lambda y: y[0].expand(6, 4, 8, 8)],
                         ids=["sum", "slice", "clone", "detached", "in place", "copied reshape", "expanded"])
def test_what_is_not_a_view_of_all_of_it_is_no_link(y, see):
    assert link_to(see(y)) is None


def test_no_links_while_the_user_handles_saved_tensors(y):
    with torch.autograd.graph.save_on_cpu():
        assert link_to(y) is None
    assert link_to(y) is y.grad_fn


# ---- stamps ----

def fired(shape=(4, 2, 3, 8, 8), p=RECOMPUTE):
    torch.manual_seed(1)
    x = (torch.randn(shape) + 0.5).requires_grad_()
    out = neuron.multi_step(LIF(tau=2.0, v_th=0.5), x, (None,), surrogate=surrogate.atan(), policy=p)
    assert 0.05 < out.spikes.mean() < 0.8
    return out.spikes


@pytest.mark.parametrize("shape", [(4, 2, 3, 8, 8), (3, 5), (4, 1, 7), (1, 3, 3)])
def test_the_stamp_of_a_neuron_is_its_output(shape):
    spikes = fired(shape)
    data, code = stamps.code_of(spikes)
    assert code.kind == "bits" and torch.equal(coding.decode(data, code), spikes)
    assert data.numel() == -(-spikes.numel() // 8)


def test_all_readers_share_one_packed_copy():
    spikes = fired()
    a, code = stamps.code_of(spikes.flatten(0, 1))
    b, _ = stamps.code_of(spikes)
    c, permuted = stamps.code_of(spikes.permute(1, 0, 2, 3, 4))
    assert a.data_ptr() == b.data_ptr() == c.data_ptr()
    assert torch.equal(coding.decode(c, permuted), spikes.permute(1, 0, 2, 3, 4))
    assert code.shape == (8, 3, 8, 8)


def test_a_slice_or_a_changed_tensor_is_packed_for_itself():
    spikes = fired()
    part = spikes[1:]
    data, code = stamps.code_of(part)
    assert torch.equal(coding.decode(data, code), part)
    changed = spikes.detach().clone()
    stamps.code_of(changed)
    changed[0] = 2
    data, code = stamps.code_of(changed)
    assert torch.equal(coding.decode(data, code), changed)
    changed.mul_(0.3)
    assert stamps.code_of(changed) is None


@pytest.mark.parametrize("make, levels", [
    (lambda s: s, 1), (lambda s: s.flatten(0, 1), 1), (lambda s: s + s, 2), (lambda s: s * (s + s), 2),
    (lambda s: s + s.clone() + s, 3), (lambda s: torch.cat([s, s]), 1),
    (lambda s: s.permute(4, 0, 1, 2, 3).contiguous(), 1),
    (lambda s: s.to(torch.bfloat16), 1), (lambda s: nn.functional.max_pool2d(s[0], 2), 1), (lambda s: s[:, 0], 1),
    (lambda s: s + 0.5, None), (lambda s: s - s, None), (lambda s: s * 2, None),
    (lambda s: torch.add(s, s, alpha=2), None),
    (lambda s: s.sigmoid(), None), (lambda s: s.detach(), None)])
def test_what_the_graph_proves(make, levels):
    found = stamps.alphabet(make(fired()))
    assert (found and found.levels) == levels


# ---- the chain ----

def chain(p, shape=(4, 6, 3, 8, 8), channels=8, seed=0):
    """conv -> batch norm -> LIF -> conv on spikes; returns what backward needs, and the functions used."""
    torch.manual_seed(seed)
    x = torch.randn(shape)
    w = torch.randn(channels, shape[2], 3, 3, requires_grad=True)
    g, b = (torch.ones(channels) * 1.5).requires_grad_(), torch.zeros(channels, requires_grad=True)
    y = linear.conv(x.flatten(0, 1), w, None, PLAIN, p)
    z = norm.batch_norm(y, g, b, None, None, True, 0.1, 1e-5, p)
    z = z.view(*shape[:2], *z.shape[1:])
    out = neuron.multi_step(LIF(tau=2.0), z, (None,), surrogate=surrogate.atan(), policy=p)
    return out.spikes, (w, g, b)


def saved_bytes(spikes):
    """Bytes that the nodes from `spikes` back to the leaves hold, each storage once, without parameters."""
    seen, todo, total, met = set(), [spikes.grad_fn], 0, set()
    while todo:
        node = todo.pop()
        if node is None or node in met:
            continue
        met.add(node)
        for t in getattr(node, "saved_tensors", ()):
            if t is not None and t.untyped_storage().data_ptr() not in seen and not isinstance(t, nn.Parameter):
                seen.add(t.untyped_storage().data_ptr())
                total += 0 if t.requires_grad and t.is_leaf else t.untyped_storage().nbytes()
        todo += [n for n, _ in node.next_functions]
    return total


@pytest.mark.parametrize("prefer, per_element", [("speed", 4.125), ("memory", 0.125)])
def test_what_a_chain_keeps(prefer, per_element):
    spikes, _ = chain(policy.Policy("recompute", prefer))
    image = 4 * 6 * 3 * 8 * 8 * 4
    small = 64 * 8 * 4  # a few vectors of one value per channel
    kept = saved_bytes(spikes) - image
    assert per_element * spikes.numel() <= kept <= per_element * spikes.numel() + small


@pytest.mark.parametrize("samples", [6, 32], ids=["whole", "in chunks"])
def test_chunks_change_rounding_only(samples):
    """float64, so that a wrong count or a lost chunk cannot hide in rounding."""
    results = []
    for prefer in ("speed", "memory"):
        p = policy.Policy("recompute", prefer)
        torch.set_default_dtype(torch.float64)
        try:
            spikes, params = chain(p, (3, samples, 2, 6, 6))
            loss = (spikes * torch.linspace(0, 1, spikes.numel()).view_as(spikes)).sum()
            loss.backward()
        finally:
            torch.set_default_dtype(torch.float32)
        results.append([spikes.detach(), *(p.grad for p in params)])
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results):
        assert (a - b).norm() <= 1e-12 * b.norm() and b.norm() > 0
