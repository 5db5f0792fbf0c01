"""The tests can fail: kernels with one line broken are compiled, and the exactness checks must refuse each of them."""
import itertools
import re

import one_neuron
import pytest
import torch
from helpers import (
    NEURONS,
    Run,
    assert_bit_equal,
    assert_fires,
    assert_gradients,
    driving,
    name_of,
    oracle,
    params_for,
    run,
)
from one_neuron import Edit

from shared_core import _build
from shared_core.backends import native
from shared_core.dynamics import IF

FORWARD, BACKWARD = "spikes|state", "gradient"  # where a mutation must be noticed


def edit(struct: str, old: str, new: str) -> tuple[Edit]:
    return (Edit("neuron.h", f"\nstruct {struct} {{\n", old, new),)


def spiking_jelly(neuron: str, v: str, carried: str, fire: str = "SpikingJellyFire") -> dict:
    """v: where the charge reads the state; carried: gradient of the state; fire: the struct that fires and resets."""
    h = "tr.h" if fire == neuron else "h"
    return {
        "untouched": (None, ()),
        "carry dropped in the forward": (FORWARD, edit(neuron, v, v.replace("before.v", "R(0)"))),
        "carry dropped in the backward": (BACKWARD, edit(neuron, f"return {{{carried}}};", "return {R(0)};")),
        "reset gradient dropped": (BACKWARD, edit(fire, "(gs + through_reset) * g", "gs * g")),
        "reset gradient kept when detached": (BACKWARD, edit(fire, "c.detach_reset ? R(0) :", "")),
        "> for >=": (FORWARD, edit(fire, f"return {h} >= c.v_th;", f"return {h} > c.v_th;")),
        "no hard reset": (FORWARD, edit(fire, "const R reset = kHard ? c.v_reset :", "const R reset =")),
    }


def snn_torch(neuron: str, syn_or_mem: dict) -> dict:
    fire = "SnnTorchFire"
    return {
        "untouched": (None, ()),
        **syn_or_mem,
        "reset gradient dropped (subtract)": (BACKWARD, edit(fire, "g_spike -= theta * e;", "")),
        "reset gradient dropped (zero)": (BACKWARD, edit(fire, "g_spike -= u * e;", "")),
        ">= for >": (FORWARD, edit(neuron, "(tr.u - p.theta) > R(0)", "(tr.u - p.theta) >= R(0)")),
        ">= for > in the reset": (FORWARD, edit(fire, "(m - theta) > R(0)", "(m - theta) >= R(0)")),
        "threshold gradient dropped": (BACKWARD, edit(fire, "g_theta -= through_spike;", "")),
    }


# neuron -> name -> (where it is noticed, edits)
MUTATIONS = {
    "IF": spiking_jelly("IF", "before.v + x", "gx"),
    "LIF": spiking_jelly("LIF", "(before.v, x,", "gh - leaked"),
    "ParametricLIF": spiking_jelly("ParametricLIF", "(before.v, x,", "gh - leaked"),
    "KLIF": spiking_jelly("KLIF", "p.k * charge_unscaled(before.v, x,", "gc - leaked", fire="KLIF"),
    "Leaky": snn_torch("Leaky", {
        "carry dropped in the forward": (FORWARD, edit("Leaky", "const R base = p.beta * kept;",
                                                       "const R base = R(0) * kept;")),
        "carry dropped in the backward": (BACKWARD, edit("Leaky", "return {p.beta * gx * decayed};",
                                                         "return {R(0)};")),
    }),
    "Synaptic": snn_torch("Synaptic", {
        "syn dropped in the forward": (FORWARD, edit("Synaptic", "= p.alpha * before.syn;", "= R(0);")),
        "mem dropped in the forward": (FORWARD, edit("Synaptic", "= p.beta * before.mem;", "= R(0);")),
        "syn dropped in the backward": (BACKWARD, edit("Synaptic", "return {p.alpha * g_syn,", "return {R(0),")),
        "mem dropped in the backward": (BACKWARD, edit("Synaptic", "p.beta * gm};", "R(0)};")),
    }),
}
QUICK = {("IF", "untouched"), ("IF", "> for >="), ("Leaky", "untouched"), ("Leaky", ">= for >")}
CASES = [pytest.param(neuron, name, id=f"{neuron}: {name}",
                      marks=() if (neuron, name) in QUICK else pytest.mark.slow)
         for neuron, mutations in MUTATIONS.items() for name in mutations]


def check(neuron: str) -> None:
    """The exactness contract for every variant of a neuron, as in test_multi_step.py, on fewer shapes.

    One parameter value per neuron: the gradient of a shared one is a sum that may cancel, and says less.
    """
    for d, steps, given in itertools.product(NEURONS[neuron], (7, 40), (False, True)):
        params = params_for(d, (65,))
        state = tuple(torch.randn(65) * 0.4 for _ in d.states) if given else None
        x = driving(d, steps, (65,), params, state)
        got, wanted = (run(d, x, state, params, backend=b, record=True) for b in ("native", "reference"))
        assert_bit_equal(got.out.spikes, wanted.out.spikes, f"{name_of(d)}: spikes")
        for a, b in zip(got.out.sequence, wanted.out.sequence, strict=True):
            assert_bit_equal(a, b, f"{name_of(d)}: states")
        assert_gradients(got, wanted, oracle(d, x, state, params, record=True))


@pytest.mark.parametrize("neuron, name", CASES)
def test_a_broken_kernel_is_caught_and_the_untouched_one_passes(neuron, name, tmp_path, monkeypatch):
    try:
        _build.compiler()
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    where, edits = MUTATIONS[neuron][name]
    library = native._load(one_neuron.library(tmp_path / "kernels", neuron, edits))
    monkeypatch.setattr(native, "_library", lambda: (library, "one neuron"))
    if where is None:
        check(neuron)
        return
    with pytest.raises(AssertionError) as caught:
        check(neuron)
    assert re.search(where, str(caught.value)), f"caught, but elsewhere: {caught.value}"


def test_every_neuron_has_mutations():
    assert set(MUTATIONS) == set(NEURONS)


# ---- quick ones: the same checks on results that are broken afterwards --------------------------------------------

def test_the_checks_refuse_results_that_are_slightly_wrong():
    d = IF(0.7, -0.5)
    x = driving(d, 40, (65,))
    good = run(d, x, None, (), backend="reference", record=True)
    truth = oracle(d, x, None, (), record=True)
    assert_gradients(good, good, truth)
    off = Run(good.out, tuple(g * (1 + 3e-5) for g in good.grads))
    with pytest.raises(AssertionError, match="gradient 0"):
        assert_gradients(off, good, truth)
    flipped = good.out.spikes.detach().clone()
    flipped[20, 3] = 1 - flipped[20, 3]
    with pytest.raises(AssertionError, match="1 of"):
        assert_bit_equal(flipped, good.out.spikes)
    strict = run(IF(0.7 * (1 + 2e-7), -0.5), x, None, (), backend="reference")
    assert (strict.out.spikes[0] != good.out.spikes[0]).any(), "the input does not lie on the threshold"
    with pytest.raises(AssertionError, match="tests nothing"):
        assert_fires(good.out.spikes * 0)
