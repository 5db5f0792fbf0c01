"""explain(model, sample): what it sees, what it finds, and that it leaves the model as it was."""
import copy
import json
import subprocess
import sys
import warnings

import pytest
import snntorch as snn
import torch
from snntorch import utils
from spikingjelly.activation_based import functional, layer, monitor, neuron
from torch import nn

import sj_memext
import snntorch_memext
from shared_core import explain, memory
from shared_core.checkpoint import checkpoint_modules
from shared_core.cli import main
from shared_core.errors import MemextError

T, N = 3, 2
X = (T, N, 2, 8, 8)


def found(model, sample=X, **options):
    return explain(model, sample, plan=False, **options)


def keys(explanation, problems=False):
    return {f.key for f in explanation.findings if f.problem or not problems}


def one(explanation, key):
    finding, = [f for f in explanation.findings if f.key == key]
    return finding


def multi_step(**options):
    """conv -> norm -> neuron -> linear -> neuron, in step mode "m", that fires."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(**options),
                        layer.Flatten(), layer.Linear(256, 5), neuron.IFNode(v_threshold=0.2))
    nn.init.constant_(net[1].bias, 1.5)
    functional.set_step_mode(net, "m")
    return net


def leaky(**options):
    return snn.Leaky(beta=0.9, threshold=0.3, **options)


class Loop(nn.Module):
    """snnTorch's tutorial 5: states in local variables, time in forward."""

    def __init__(self, steps=5):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(6, 8), leaky(), nn.Linear(8, 4), leaky()
        self.steps = steps

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes = []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def hidden():
    """snnTorch's tutorial 6: states in the neurons, time around the model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), leaky(init_hidden=True), nn.Linear(8, 4),
                         leaky(init_hidden=True, output=True))


# ---- what it sees ----

def test_a_multi_step_net():
    got = found(multi_step())
    assert (got.model, got.shapes, got.T, got.N) == ("Sequential", [X], T, N)
    lif, spiking = got.neurons
    assert (lif.name, lif.kind, lif.framework, lif.step_mode) == ("2", "LIFNode", "spikingjelly", "m")
    assert (lif.T, lif.N, lif.calls, lif.per_step, lif.looped) == (T, N, 1, 1, False)
    assert (lif.ours, lif.why) == ("FusedLIFNode", None) and spiking.ours == "FusedIFNode"
    assert 0 < lif.rate < 1
    assert keys(got) == {"needs reset"} and not got.problems


def test_a_loop_over_time_in_forward():
    got = found(Loop(), (4, 6))
    assert [(n.T, n.N, n.calls, n.looped, n.ours) for n in got.neurons] == [(5, 4, 5, True, "FusedLeaky")] * 2
    assert keys(got) == {"looped"}, "forward resets by itself: nothing to be said of that"
    assert "5 steps" in one(got, "looped").text and "unroll" in one(got, "looped").todo


def test_a_loop_over_time_around_the_model():
    once, often = found(hidden(), (4, 6)), found(hidden(), (4, 6), steps=7)
    assert once.T == 1 and "one step" in keys(once) and "steps=T" in one(once, "one step").todo
    assert (often.T, often.N, often.neurons[0].calls) == (7, 4, 7) and "looped" in keys(often)
    assert "around the model" in one(often, "looped").text and "snntorch.utils.reset" in one(often, "needs reset").todo


def test_single_step_mode_of_spikingjelly_with_time_outside():
    net = multi_step()
    functional.set_step_mode(net, "s")
    got = found(net, X[1:], steps=4)
    assert [(n.step_mode, n.T, n.N, n.looped) for n in got.neurons] == [("s", 4, N, True)] * 2


def test_one_neuron_for_several_layers():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.a, self.b = nn.Linear(6, 6), neuron.IFNode(v_threshold=0.2), neuron.IFNode(v_threshold=0.2)
            self.c = neuron.IFNode(v_threshold=0.2)

        def forward(self, x):
            return sum(self.b(self.fc(self.b(self.a(self.c(x))))) for _ in range(4))

    class Tie(Shares):
        def forward(self, x):
            return sum(self.b(self.fc(self.b(self.a(x)))) for _ in range(4))

    assert [(n.name, n.T, n.per_step) for n in found(Tie(), (3, 6)).neurons if n.calls] == [("a", 4, 1), ("b", 4, 2)]
    got = found(Shares(), (3, 6))
    assert [(n.name, n.T, n.per_step) for n in got.neurons] == [("a", 4, 1), ("b", 4, 2), ("c", 4, 1)]
    assert "b is called 2 times in every time step" in one(got, "shared").text


def test_a_retrofitted_model_is_seen_as_its_author_wrote_it():
    net = sj_memext.retrofit(multi_step(), "neuron")
    assert [(n.kind, n.ours, n.why) for n in found(net).neurons] == [("LIFNode", "FusedLIFNode", None),
                                                                   ("IFNode", "FusedIFNode", None)]
    snntorch_memext.retrofit(net := hidden(), "neuron")
    assert [(n.kind, n.ours) for n in found(net, (4, 6), steps=2).neurons] == [("Leaky", "FusedLeaky")] * 2


def test_a_class_that_computes_something_else_is_left_and_said_so():
    class Mine(neuron.LIFNode):
        def neuronal_charge(self, x):
            self.v = self.v.detach() + x

    net = multi_step()
    net[2] = Mine(step_mode="m")
    got = found(net)
    assert got.neurons[0].ours is None and "overrides neuronal_charge" in one(got, "left").text


# ---- what it finds ----

def test_states_of_an_earlier_step():
    net = multi_step()
    net(torch.rand(X)).sum().backward()
    got = found(net)
    finding = one(got, "not reset")
    assert finding.problem and finding.modules == ("2", "5") and "2.v" in finding.text
    assert "reset_net" in finding.todo and got.advice == finding.todo
    functional.reset_net(net)
    assert "not reset" not in keys(found(net))


def test_states_of_an_earlier_step_in_snntorch():
    net = hidden()
    net(torch.rand(4, 6))[0].sum().backward()
    assert one(found(net, (4, 6)), "not reset").modules == ("1", "3")
    utils.reset(net)
    assert "not reset" not in keys(found(net, (4, 6)))


def test_a_single_step_neuron_that_takes_time_for_the_batch():
    net = multi_step()
    net[2].step_mode = "s"
    got = found(net)
    finding = one(got, "time as batch")
    assert finding.problem and finding.modules == ("2",) and f"T = {T}" in finding.text
    assert "set_step_mode" in got.advice
    assert "time as batch" not in keys(found(multi_step()))


def test_a_multi_step_neuron_that_takes_samples_for_time():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), neuron.LIFNode(step_mode="m"))
    finding = one(found(net, (6, 2, 8, 8)), "batch as time")
    assert finding.problem and finding.modules == ("2",) and "fed by 1" in finding.text

    class Reshapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = net[0], net[2]

        def forward(self, x):
            return self.lif(self.conv(x).reshape(3, 2, 4, 8, 8))

    assert "batch as time" not in keys(found(Reshapes(), (6, 2, 8, 8)))


def test_a_shape_that_changes_between_calls():
    class Changes(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.lifs, self.pool = nn.ModuleList([neuron.IFNode() for _ in range(number)]), nn.AvgPool2d(2)

        def forward(self, x):
            return self.lifs[-1](self.pool(self.lifs[0](x)))

    finding = one(found(Changes(1), (N, 2, 8, 8)), "shape changed")
    assert finding.problem and "[2, 2, 8, 8] and then [2, 2, 4, 4]" in finding.text
    assert "shape changed" not in keys(found(Changes(2), (N, 2, 8, 8)))


class Records(nn.Module):
    def __init__(self, grows=False, detach=False):
        super().__init__()
        self.net, self.grows, self.detach, self.spikes = multi_step(), grows, detach, []

    def forward(self, x):
        if not self.grows:
            self.spikes = []
        out = self.net(x)
        self.spikes.append(out.detach() if self.detach else out)
        return out


@pytest.mark.parametrize("grows", [False, True])
def test_a_list_that_keeps_graphs_alive(grows):
    model = Records(grows)
    finding = one(found(model), "recorded")
    assert finding.modules == ("Records.spikes",) and finding.problem == grows
    assert ("grows with every step" in finding.text) == grows and "detach" in finding.todo
    assert model.spikes == [], "what explain did itself is taken back"
    assert "recorded" not in keys(found(Records(grows, detach=True)))


def test_a_monitor_and_a_membrane_sequence():
    net = multi_step(store_v_seq=True)
    kept = monitor.OutputMonitor(net, neuron.LIFNode)
    got = [f for f in found(net).findings if f.key == "recorded"]
    where = " ".join(name for f in got for name in f.modules)
    assert len(got) == 2 and "OutputMonitor.records" in where and "2.v_seq (store_v_seq=True)" in where
    assert len(kept.records) == 0 and net[2].v_seq is None


class Cut(nn.Module):
    def __init__(self, detach=False, unused=False):
        super().__init__()
        self.a, self.lif, self.b, self.detach = nn.Linear(6, 6), neuron.IFNode(v_threshold=0.1), nn.Linear(6, 6), detach
        if unused:
            self.c = nn.Linear(6, 6)

    def forward(self, x):
        x = self.lif(self.a(x))
        return self.b(x.detach() if self.detach else x)


def test_parameters_without_a_gradient():
    assert not {"no gradient", "unused"} & keys(found(Cut(), (3, 6)))
    finding = one(found(Cut(unused=True), (3, 6)), "unused")
    assert finding.modules == ("c.weight", "c.bias") and "find_unused_parameters" in finding.todo
    finding = one(found(Cut(detach=True), (3, 6)), "no gradient")
    assert finding.modules == ("a.weight", "a.bias") and not finding.problem and "detach" in finding.todo


def test_no_parameter_gets_a_gradient():
    class All(Cut):
        def forward(self, x):
            return super().forward(x).detach()

    assert one(found(All(), (3, 6)), "no gradient").problem


@pytest.mark.parametrize("threshold, key", [(1e9, "never fires"), (1e-9, "always fires")])
def test_neurons_that_never_or_always_fire(threshold, key):
    net = nn.Sequential(nn.Linear(6, 6), neuron.IFNode(v_threshold=threshold))
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.abs_()
    finding = one(found(net, (3, 6)), key)
    assert finding.modules == ("1",) and finding.problem == (key == "never fires")


class ByHand(nn.Module):
    """A membrane in a local variable; with keeps=True on the object."""

    class Fire(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return (v > 0.5).to(v)

        @staticmethod
        def backward(ctx, g):
            return g / (1 + (ctx.saved_tensors[0] - 0.5).square())

    def __init__(self, keeps=False):
        super().__init__()
        self.keeps, self.v = keeps, None

    def forward(self, x):
        if self.keeps:
            self.v = x if self.v is None else self.v.detach() * 0.5 + x
            return self.Fire.apply(self.v)
        v, out = torch.zeros_like(x[0]), []
        for x_t in x:
            v = v * 0.5 + x_t
            out.append(self.Fire.apply(v))
        return torch.stack(out)


def by_hand(keeps=False):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), ByHand(keeps)) for _ in range(3)))


def test_neurons_written_by_hand():
    got = found(by_hand(), (4, 3, 6))
    assert [(n.name, n.kind, n.framework, n.T, n.N, n.looped, n.ours) for n in got.neurons] == [
        (f"{i}.1", "ByHand", "by hand", 4, 3, True, None) for i in range(3)]
    finding = one(got, "by hand")
    assert "3 ByHand" in finding.text and "a loop over 4 steps" in finding.text
    assert "only whole modules run again in the backward pass help" in finding.todo
    net = by_hand()
    nn.init.constant_(net[2][0].weight, -9.0)
    silent = found(net, (4, 3, 6))
    assert silent.neurons[2].rate == 0 and silent.neurons[2].T == 4, "known by its class, though it fires never"
    kept = one(found(by_hand(keeps=True), (3, 6)), "by hand")
    assert "carries 'v' from call to call" in kept.todo


def test_a_module_that_hands_spikes_on_is_no_neuron():
    class Doubles(nn.Module):
        def forward(self, x):
            return x * 2

    net = nn.Sequential(nn.Linear(6, 6), neuron.IFNode(v_threshold=0.1), Doubles(), nn.Linear(6, 6), Doubles())
    got = found(net, (3, 6))
    assert [n.name for n in got.neurons] == ["1"] and got.neurons[0].rate > 0


def test_no_neuron_at_all():
    got = found(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), (3, 6))
    assert got.neurons == [] and keys(got) == {"no neuron"}


@pytest.mark.parametrize("net, shape, module, todo", [
    (multi_step(), X[1:], "0", "take [T, N, ...]: pass a sample with time first"),
    (nn.Sequential(layer.Conv2d(2, 4, 3), neuron.IFNode()), X, "0", "set_step_mode(net, 'm')"),
    (Loop(), (4, 7), "fc1", "memext explain script.py"),
], ids=["no time", "time in step mode s", "size"])
def test_a_forward_pass_that_fails_is_a_finding(net, shape, module, todo):
    got = found(net, shape)
    finding, = got.findings
    assert finding.key == "failed" and finding.problem and finding.modules == (module,)
    assert str(list(shape)) in finding.text and got.methods == []
    assert todo in finding.todo


def test_eval_mode_and_a_module_that_is_not_called():
    net = multi_step().eval()
    net.spare = nn.Identity()
    assert "eval" in keys(found(net))

    class Skips(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x))

    got = found(Skips(nn.Linear(6, 6), neuron.IFNode(v_threshold=0.1), neuron.IFNode()), (3, 6))
    assert one(got, "not called").modules == ("2",)


# ---- nothing is left behind ----

def everything(net):
    return ([(name, type(m), sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
             for name, m in net.named_modules()], {k: v.clone() for k, v in net.state_dict().items()},
            [p.grad for p in net.parameters()], net.training, torch.get_rng_state())


def with_dropout():
    return nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), neuron.IFNode(v_threshold=0.1))


@pytest.mark.parametrize("make, shape", [(multi_step, X), (with_dropout, (4, 6)), (hidden, (4, 6)), (Loop, (4, 6)),
                                         (by_hand, (4, 3, 6)), (multi_step, X[1:])],
                         ids=["spikingjelly", "random", "snntorch", "loop", "by hand", "fails"])
@pytest.mark.parametrize("plan", [False, True])
def test_the_model_is_left_as_it_was(make, shape, plan):
    net = make()
    before = everything(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(net, shape, plan=plan)
    after = everything(net)
    assert after[0] == before[0] and after[2] == before[2] and after[3] == before[3]
    assert after[1].keys() == before[1].keys() and all(torch.equal(v, before[1][k]) for k, v in after[1].items())
    assert torch.equal(after[4], before[4])
    copy.deepcopy(net)


def test_a_graph_of_the_users_own_can_still_be_used():
    net = multi_step()
    loss = net(torch.rand(X)).sum()
    statistics = net[1].running_mean
    explain(net, X, plan=False)
    loss.backward()
    assert net[1].running_mean is statistics


def test_states_and_gradients_of_the_users_own_step_stay():
    net = multi_step()
    net(torch.rand(X)).sum().backward()
    v, gradients = net[2].v, [p.grad.clone() for p in net.parameters()]
    explain(net, X)
    assert net[2].v is v and all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients))


# ---- what it expects ----

def test_the_expected_peaks_are_those_of_the_planner():
    net, x = multi_step(), torch.rand(X)
    got = explain(net, x)
    wanted = memory.plan(net, x)
    assert [m.peak for m in got.methods] == [wanted["native"].peak.peak, *(
        m.peak.peak for m in wanted.methods if m.name != "native")]
    assert got.methods[0].call == "as it is" and got.methods[0].of_native == 1
    best = min(got.methods, key=lambda m: m.peak)
    assert best.of_native < 0.9 and got.advice.startswith(best.call) and "sj_memext.retrofit(net, " in best.call


def test_the_call_that_is_advised_can_be_made():
    net = multi_step()
    got = explain(net, X)
    for method in got.methods[1:]:
        eval(method.call, {"sj_memext": sj_memext, "net": copy.deepcopy(net)})


def test_whole_modules_run_again_are_expected_and_advised():
    net = by_hand()
    got = explain(net, (8, 16, 6))
    assert got.methods[-1].name == "checkpoint" and got.methods[-1].of_native < 0.9
    assert got.advice.startswith("shared_core.checkpoint.checkpoint_modules(net, ['*'])")
    native, again = (memory.measure(lambda net=net: net(torch.rand(8, 16, 6)).sum().backward()).peak_bytes
                     for net in (net, checkpoint_modules(copy.deepcopy(net), ["*"])))
    assert again < 0.9 * native


def test_time_around_the_model_is_part_of_the_training_step():
    short, long = (explain(hidden(), (4, 6), steps=steps) for steps in (1, 8))
    assert long.methods[0].peak > 3 * short.methods[0].peak
    assert "unroll" in long.advice


# ---- how it is said ----

def test_the_text_is_short_and_names_the_problem_first():
    net = multi_step()
    net(torch.rand(X)).sum().backward()
    text = found(net).text()
    lines = text.splitlines()
    assert lines[0] == f"Sequential on {list(X)}: 2 neurons, T = {T}, N = {N}"
    assert "multi-step" in lines[4] and "FusedLIFNode" in lines[4]
    assert text.index("WRONG: 2 neurons still carry") < text.rindex("DO: call functional.reset_net(net)")
    assert len(lines) < 20 and max(map(len, lines)) <= 122


def test_neurons_that_are_alike_share_a_line():
    net = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(6, 6), neuron.IFNode(v_threshold=0.1))))
    got = found(net, (3, 6))
    assert "1 ... 11 (6)" in got.text() and len([n for n in got.text(every=True).splitlines() if " IFNode" in n]) == 6


def test_everything_is_json():
    values = json.loads(json.dumps(explain(multi_step(), X).to_dict()))
    assert values["T"] == T and values["neurons"][0]["ours"] == "FusedLIFNode" and values["methods"][0]["peak"] > 0


@pytest.mark.parametrize("arguments, match", [
    ((3, X), "model is int"),
    ((multi_step(), "4,3"), r"sample is '4,3' \(str\)"),
    ((multi_step(), ()), "sample is"),
    ((multi_step(), (3, -1)), "sample is"),
    ((multi_step(), X, 0), "steps is 0"),
    ((multi_step(), X, True), "steps is True"),
])
def test_bad_arguments(arguments, match):
    with pytest.raises(MemextError, match=f"explain: {match}"):
        explain(*arguments)


# ---- the command ----

MODULE = """
import torch
from torch import nn
from spikingjelly.activation_based import layer, neuron

def build():
    return nn.Sequential(layer.Linear(6, 6, step_mode="m"), neuron.IFNode(v_threshold=0.1, step_mode="m"))

def single():
    return nn.Sequential(nn.Linear(6, 6), neuron.IFNode(v_threshold=0.1))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "explained_net.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("explained_net", None)


@pytest.mark.parametrize("arguments", [["explained_net:build", "--input", "4,3,6", "--no-plan"],
                                       ["--no-plan", "--input", "4,3,6", "explained_net:build"]])
def test_the_command_explains_a_factory(folder, capsys, arguments):
    assert main(["explain", *arguments]) == 0
    assert "Sequential on [4, 3, 6]: 1 neurons, T = 4, N = 3" in capsys.readouterr().out


def test_the_command_writes_json_and_takes_steps(folder, capsys):
    assert main(["explain", "explained_net:single", "--input", "3,6", "--steps", "5", "--json", "out.json"]) == 0
    values = json.loads((folder / "out.json").read_text())
    assert values["steps"] == values["T"] == 5 and len(values["methods"]) > 1
    assert "wrote out.json" in capsys.readouterr().out
    assert main(["explain", "explained_net:single", "--input", "3,6", "--no-plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"] == []


@pytest.mark.parametrize("arguments, match", [
    ([], "what is to be explained?"),
    (["explained_net:build"], "--input is missing"),
    (["explained_net:build", "--input", "4,x"], "is not a shape"),
    (["explained_net:build", "--input", "4,3,6", "--bad"], "'--bad' is not known here"),
    (["explained_net"], "neither a file nor MODULE:FACTORY"),
    (["nothing.py"], "there is no file 'nothing.py'"),
    (["--input", "3", "explained_net.py"], "--input and --steps go with MODULE:FACTORY"),
    (["--json", "script.py"], "--json took 'script.py'"),
    (["explained_net:build", "--input", "4,3,6", "--no-plan", "--json", "no/where.json"], "there is no folder"),
])
def test_the_command_refuses_in_one_line(folder, capsys, arguments, match):
    assert main(["explain", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert match in said and "\n" not in said


def test_importing_the_package_imports_no_torch():
    code = "import sys, shared_core; assert 'torch' not in sys.modules; shared_core.no_such_name"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'no_such_name'" in ended.stderr
