"""Nets with shared membranes beside other tools: pruning, retrofit, compile, DDP, copies; firing rates (Fig. 7)."""
from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from sharing_chains import TAU, before, chain, images, neurons
from sharing_nets import (
    SINGLE,
    assert_fires,
    assert_gradients,
    stepped,
    weighted,
)
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import sew_resnet
from torch import nn
from torch.nn.utils import prune

import sj_memext
from shared_core import cli
from shared_core.sharing._rates import spike_rates
from sj_memext import share
from sj_memext.neuron import SharedLIFNode

# ---- other people's tools --------------------------------------------------------------------------------------------

def test_weight_pruning():
    net, plain = chain(), chain()
    for m in (*net, *plain):
        if isinstance(m, nn.Conv2d):
            prune.l1_unstructured(m, "weight", 0.6)
    share(net, [neurons(net)], 2)
    x = images()
    out = net(x)
    wanted, _ = stepped(before(plain), x, [0] * 4, tau=TAU, groups=2)
    assert_fires(wanted, 0.02)
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)
    masked = net[2]
    assert (masked.weight_orig.grad[masked.weight_mask == 0] == 0).all()
    prune.remove(masked, "weight")  # later, too
    functional.reset_net(net)
    assert torch.equal(net(x), out)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_group_convolutions(groups):
    """Table III: as many groups of the convolution as of the channels."""
    net, plain = chain(groups=groups), chain(groups=groups)
    share(net, None, groups)
    x = images()
    out = net(x)
    wanted, _ = stepped(before(plain), x, range(4), tau=TAU, groups=groups)
    assert_fires(wanted)
    assert all(isinstance(net[int(name)], SharedLIFNode) and net[int(name)].groups == groups for name in neurons(net))
    assert torch.equal(out, wanted)
    weighted(out).backward()
    weighted(wanted).backward()
    assert_gradients(net, plain, SINGLE)


@pytest.mark.parametrize("method", ["neuron", "compress", "recompute"])
@pytest.mark.parametrize("first", [True, False], ids=["shared first", "shared last"])
@pytest.mark.parametrize("prefer", ["balanced", "graph"])
def test_retrofit_before_and_after(first, method, prefer):
    net, wanted = chain(norm=True), chain(norm=True)
    share(wanted, [neurons(wanted)[1:]], batch_norm="per_step")
    if not first:
        sj_memext.retrofit(net, method)
    share(net, [neurons(net)[1:]], batch_norm="per_step", prefer=prefer)
    if first:
        sj_memext.retrofit(net, method)
    x = images()
    out, same = net(x), wanted(x)
    assert torch.equal(out, same)
    weighted(out).backward()
    weighted(same).backward()
    assert_gradients(net, wanted, SINGLE)
    assert "one membrane" in str(sj_memext.report(net))
    sj_memext.restore(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in chain(norm=True).modules()]


def test_with_its_graph_kept_no_layer_runs_again():
    ran = {}
    for prefer in ("balanced", "graph"):
        net = chain()
        share(net, [neurons(net)], prefer=prefer)
        ran[prefer] = []
        for m in net:
            m.register_forward_hook(lambda m, *_, name=prefer: ran[name].append(m))
        out = net(images())
        forward = len(ran[prefer])
        weighted(out).backward()
        ran[prefer] = len(ran[prefer]) - forward
    assert ran["balanced"] > 0 and ran["graph"] == 0


@pytest.mark.parametrize("prefer", ["balanced", "graph"])
def test_torch_compile_leaves_the_stepped_part_alone(prefer):
    """A warning of the compiler, as at its limit of recompilations, is an error here."""
    net, plain = chain(norm=True), chain(norm=True)
    for m in (net, plain):
        share(m, [neurons(m)[1:]], batch_norm="per_step", prefer=prefer)
    compiled, x = torch.compile(net, backend="eager"), images()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        for m, run in ((net, compiled), (plain, plain)):
            functional.reset_net(m)
            m.zero_grad()
            weighted(run(x)).backward()
        assert_gradients(net, plain, SINGLE)
    # one frame around the first layers; without the border it is dozens, and stops at the limit of recompilations
    assert torch._dynamo.utils.counters["frames"]["total"] <= 12


def _train_one_of_two(rank: int, folder: str, prefer: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    net, one = chain(norm=True).eval(), chain(norm=True).eval()
    for m in (net, one):
        share(m, [neurons(m)], prefer=prefer)
    half, x = slice(2 * rank, 2 * rank + 2), images(batch=4)
    wrapped = torch.nn.parallel.DistributedDataParallel(net)
    for _ in range(2):
        functional.reset_net(net)
        wrapped.zero_grad()
        wrapped(x[:, half]).square().mean().backward()
    one(x).square().mean().backward()
    assert_gradients(net, one, SINGLE)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["balanced", "graph"])
def test_data_parallel_over_two_processes(prefer, tmp_path):
    """Gradients are the mean of the halves'; norms are in eval mode, as theirs are not."""
    torch.multiprocessing.spawn(_train_one_of_two, (str(tmp_path), prefer), 2)


def test_copies_share_among_themselves():
    net = chain()
    keys, x = list(net.state_dict()), images()
    share(net, [neurons(net)], 2)
    assert list(net.state_dict()) == keys
    out = net(x).detach()
    functional.reset_net(net)
    for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert made[1]._memories is made[3]._memories is not net[1]._memories
        assert torch.equal(made(x), out)
        functional.reset_net(made)
        assert torch.equal(made.eval()(x), out)
        sj_memext.restore(made)
        assert type(made[1]) is neuron.LIFNode and made[1]._memories is not made[3]._memories
    loaded = share(chain(), [neurons(net)], 2)
    nn.init.zeros_(loaded[0].weight)
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(loaded(x), out)


def test_restore_gives_the_net_back():
    net, native = chain(), chain()
    x = images()
    share(net, "auto", sample=x)
    net(x)
    sj_memext.restore(net)
    functional.reset_net(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in native.modules()]
    assert not any(name in vars(m) for m in (net, *net) for name in ("forward", "_together", "_member"))
    assert all("groups" not in vars(m) for m in net if isinstance(m, neuron.LIFNode))
    assert torch.equal(net(x), native(x))


def test_reset_net_sets_the_shared_membrane_back():
    net = chain()
    share(net, [neurons(net)])
    x = images()
    first = net(x)
    assert not torch.equal(net(x), first)
    functional.reset_net(net)
    assert net[1].v == net[7].v == 0.0
    assert torch.equal(net(x), first)


def test_auto_without_a_sample_waits_for_the_first_forward():
    net, known = chain(), chain()
    x = images()
    share(known, "auto", sample=x)
    share(net, "auto")
    assert "decided at the first forward" in str(sj_memext.report(net))
    assert torch.equal(net(x), known(x))
    assert str(sj_memext.report(net)) == str(sj_memext.report(known))
    sj_memext.restore(net)
    assert type(net[1]) is neuron.LIFNode and "forward" not in vars(net)
    sj_memext.restore(share(net, "auto"))
    assert "forward" not in vars(net)


def test_a_net_of_spikingjellys_own():
    net = sew_resnet.sew_resnet18(num_classes=4, cnf="ADD", spiking_neuron=neuron.LIFNode).eval()
    functional.set_step_mode(net, "m")
    share(net, "auto", sample=(2, 1, 3, 32, 32))
    said = sj_memext.report(net)
    assert any("sn2: one membrane" in note and note.startswith("layer4.0") for note in said.notes)
    x = torch.randn(2, 1, 3, 32, 32)
    net(x).sum().backward()
    assert net.conv1.weight.grad.abs().max() > 0


# ---- firing rates (Fig. 7) -------------------------------------------------------------------------------------------

def test_spike_rates_are_spikes_per_neuron_and_step():
    net = chain()
    share(net, [neurons(net)])
    x, seen = images(), []
    net[3].register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    rates = spike_rates(net, lambda: net(x))
    assert list(rates) == neurons(net) and len(seen) == 5
    assert rates["3"] == torch.cat(seen).double().mean().item() and 0.1 < rates["3"] < 0.4


def test_the_report_compares_rates_with_and_without_sharing(tmp_path, monkeypatch, capsys):
    (tmp_path / "rated_net.py").write_text("from test_share import chain as build")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["report", "--model", "rated_net:build", "--input", "5,2,3,5,6", "--rates", "L", "C#2", "L+C#2"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["as it is", "L", "C#2", "L+C#2"]
    assert all(list(rates) == neurons(chain()) for rates in found.values())
    assert found["as it is"]["1"] != found["L"]["1"] != found["L+C#2"]["1"]  # the same weights, another membrane
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["spikes", "per", "neuron", "and", "step", "as", "it", "is", "L", "C#2", "L+C#2"]
    assert lines[-1].startswith("mean of layers")
    assert cli.main([*command, "L+C#3"]) == 2
    assert "channels is 3, and '1' has activations of size (8, 5, 6)" in capsys.readouterr().err
