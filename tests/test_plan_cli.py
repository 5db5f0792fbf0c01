"""`memext plan`: what it prints, writes and refuses."""
from __future__ import annotations

import json
import re
import sys

import pytest

from shared_core import cli

NET = '''
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn


def build():
    net = nn.Sequential(layer.Conv2d(3, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.LIFNode(),
                        layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(8, 10))
    functional.set_step_mode(net, "m")
    return net


def on_meta():
    with torch.device("meta"):
        return build()


def looks():
    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * x.max().item()
    return Looks(3, 3)


def single_steps():
    net = build()
    functional.set_step_mode(net, "s")
    return net


def crash():
    raise ValueError("built")


def number():
    return 3
'''


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A module of the user's in the current directory; returns its name."""
    (tmp_path / "planned_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "planned_net", raising=False)
    yield "planned_net"
    sys.modules.pop("planned_net", None)


def run(net, **changes):
    options = {"--model": f"{net}:build", "--input": "4,8,3,16,16"}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return cli.main(["plan", *(part for item in options.items() for part in item if part is not True)])


@pytest.mark.parametrize("factory", ["build", "on_meta"])
def test_the_table_names_every_method_and_the_choice(net, tmp_path, capsys, factory):
    status = run(net, model=f"{net}:{factory}", budget="24GiB", optimizer="adamw", max_batch=True, json="plan.json")
    out = capsys.readouterr().out
    assert status == 0, out
    for word in ("native", "neuron *", "largest batch", "optimizer adamw", "budget 24.00 GiB", "fastest that fits",
                 "wrote plan.json"):
        assert word in out, word
    read = json.loads((tmp_path / "plan.json").read_text())
    assert read["chosen"] == "neuron" and read["shape"] == [4, 8, 3, 16, 16]
    parts = ("parameters", "inputs", "optimizer", "gradients", "activations", "transients")
    for method in read["methods"]:
        assert method["peak"]["peak"] == sum(method["peak"][part] for part in parts)
        assert method["largest_batch"] > 1000


def test_without_a_budget_only_the_figures(net, capsys):
    assert run(net) == 0
    out = capsys.readouterr().out
    assert "fits" not in out and "* the smallest" in out


def test_on_cuda_it_says_what_is_not_verified(net, capsys):
    assert run(net, device="cuda") == 0
    assert "not verified on a GPU" in capsys.readouterr().out


def test_nothing_fits(net, capsys):
    assert run(net, budget="200KiB") == 2
    found = capsys.readouterr()
    assert "neuron" in found.out and " no" in found.out
    assert re.fullmatch(r"memext plan: Nothing fits 200.00 KiB: the smallest peak is .* a batch of \d+ instead of 8 "
                        r"fits.*\n", found.err)
    assert "Nothing fits" not in found.out  # said once


def test_short_units(net, capsys):
    assert run(net, budget="1.5G") == 0
    assert "budget 1.50 GiB" in capsys.readouterr().out


def test_what_to_do_is_said_in_options_of_the_command(net, capsys):
    """Not in arguments of the Python function."""
    assert run(net, model=f"{net}:single_steps") == 2
    error = capsys.readouterr().err
    assert "--batch-dim 0 and one step's shape" in error and "batch_dim" not in error and "plan: plan" not in error
    assert run(net, batch_dim="0", budget="1GiB", max_batch=True) == 2
    assert re.fullmatch(r"memext plan: dimension 0 looks like time: .* a LIFNode is .* pass --batch-dim 1 if the "
                        r"samples are in dimension 1\n", capsys.readouterr().err)
    assert run(net, model=f"{net}:single_steps", input="8,3,16,16", budget="1GiB", max_batch=True) == 0
    assert "(--batch-dim 0)?" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"budget": "much"}, {"max_batch": True}, {"optimizer": "sgdd"}, {"device": "tpu"},
                                     {"batch_dim": "2"}, {"json": "nowhere/x.json"}, {"input": "7"}])
def test_arguments_are_checked_before_the_model_is_built(net, capsys, changes):
    assert run(net, model=f"{net}:crash", **changes) == 2
    assert "built" not in capsys.readouterr().err
    assert run(net, model=f"{net}:crash") == 2
    assert "the factory raised ValueError: built" in capsys.readouterr().err


@pytest.mark.parametrize("changes, words", [
    ({"model": "planned_net:nothing"}, "--model 'planned_net:nothing'.*has no 'nothing'"),
    ({"model": "planned_net"}, "--model 'planned_net'.*allowed: module:attribute"),
    ({"model": "planned_net:number"}, "factory returned int.*torch.nn.Module"),
    ({"model": "planned_net:looks", "input": "2,2,3"}, "Looks .*raised .*tensors without values"),
    ({"input": "4,x"}, "--input '4,x' is not a shape"),
    ({"input": "7"}, "no dimension 1 for the batch"),
    ({"input": "4,8,5,16,16"}, r"on input \(4, 8, 5, 16, 16\) raised"),
    ({"budget": "24 parsecs"}, "--budget '24 parsecs' is no size; allowed: .*24GiB"),
    ({"max_batch": True}, "--max-batch needs a budget, e.g. --budget"),
    ({"optimizer": "sgdd"}, "--optimizer 'sgdd' is unknown; allowed: sgd, momentum"),
    ({"batch_dim": "3"}, "--batch-dim is 3; allowed: 0 or 1$"),
    ({"device": "tpu"}, "--device is 'tpu'; allowed: cpu or cuda$"),
    ({"json": "nowhere/plan.json"}, "--json 'nowhere/plan.json': there is no folder"),
    ({"json": "."}, "--json .*cannot be written"),
], ids=lambda value: "" if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()))
def test_errors_take_one_line_and_status_2(net, capsys, changes, words):
    assert run(net, **changes) == 2
    error = capsys.readouterr().err
    assert error.startswith("memext plan: ") and error.count("\n") == 1
    assert re.search(words, error), error
