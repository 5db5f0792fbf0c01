"""Early exit of SpikingJelly networks: as if nobody left the batch, whatever carries states; the net stays as it is."""
import copy
import pickle

import pytest
import torch
from exit_reference import assert_same, between
from spikingjelly.activation_based import encoding, functional, layer, neuron
from torch import Tensor, nn

import sj_memext
from shared_core.errors import MemextError
from shared_core.hardware.early_exit import early_exit
from sj_memext import model
from sj_memext.layer import ReversibleBlock, ReversibleSequence
from sj_memext.neuron import FusedLIFNode, FusedParametricLIFNode, ReversibleLIFNode, SharedLIFNode

T, N = 5, 12


def images(*size, steps=T, samples=N) -> Tensor:
    """[steps, samples, *size]: a pattern for each sample, some strong and some weak, and noise in each step."""
    generator = torch.Generator().manual_seed(3)
    light = torch.rand(1, samples, *(1,) * len(size), generator=generator) + 0.3
    pattern, noise = (torch.randn(n, samples, *size, generator=generator) for n in (1, steps))
    return pattern * light + noise * 0.4


def brought_up(net: nn.Module, gain: float = 3.0) -> nn.Module:
    for m in net.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.weight.data *= gain
    return net


def settled(net: nn.Module, x_seq: Tensor, mode: str) -> nn.Module:
    """With batch norms that know the activations: all layers fire."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        net(x_seq) if mode == "m" else [net(x) for x in x_seq]
    functional.reset_net(net)
    return net


class Twice(nn.Module):
    """One neuron for two layers of equal size, called twice a step: one membrane."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.lif = layer.Linear(16, 20), layer.Linear(20, 20), SharedLIFNode(groups=2, tau=1.8)
        self.head = layer.Linear(20, 6)

    def forward(self, x):
        return self.head(self.lif(self.fc2(self.lif(self.fc1(x)))))


class Own(nn.Module):
    """A user's module with a state of its own, in an attribute; and a trace that only looks on."""

    def __init__(self):
        super().__init__()
        self.fc, self.head, self.mem = nn.Linear(16, 20), nn.Linear(20, 6), None
        self.seen = []

    def forward(self, x):
        self.mem = self.fc(x) + (0 if self.mem is None else 0.7 * self.mem)
        spikes = (self.mem > 0.8).float()
        self.mem = self.mem - spikes
        self.seen.append({"spikes": spikes})
        return self.head(spikes)


class InPlace(nn.Module):
    """State in a buffer with the batch in the last dimension, written in place."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.head = nn.Linear(16, 20), neuron.LIFNode(), nn.Linear(20, 6)
        self.register_buffer("trace", torch.zeros(20, 1))

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        self.trace = self.trace * 0.5 + spikes.t()
        self.trace += 0.01
        return self.head(self.trace.t())


class Clamped(nn.Module):
    def forward(self, x):
        return x.abs().clamp(max=0.96)


def flat(*middle, classes=6):
    return nn.Sequential(layer.Linear(16, 20), *middle, layer.Linear(20, classes))


def small_resnet(**options):
    return model.resnet19(6, 2, widths=(8, 8, 16, 16), **options)


def convolutions():
    return nn.Sequential(layer.Conv2d(2, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.LIFNode(detach_reset=True),
                         layer.MaxPool2d(2), layer.Flatten(), layer.Linear(128, 20), neuron.LIFNode(),
                         layer.Linear(20, 6))


def reversible_blocks():
    def part():
        return nn.Sequential(neuron.LIFNode(), layer.Conv2d(4, 4, 3, padding=1))

    return nn.Sequential(layer.Conv2d(2, 8, 3, padding=1), ReversibleSequence([ReversibleBlock(part(), part())
                         for _ in range(2)]), neuron.LIFNode(), layer.Flatten(), layer.Linear(512, 6))


# name: (build, size of a sample, gain). The first are for both step modes.
BOTH = {
    "convolutions": (convolutions, (2, 8, 8), 3),
    "if, soft reset": (lambda: flat(neuron.IFNode(v_reset=None)), (16,), 3),
    "plif": (lambda: flat(neuron.ParametricLIFNode(init_tau=1.7)), (16,), 3),
    "fused": (lambda: flat(FusedLIFNode(tau=1.6, v_reset=None), layer.Linear(20, 20), FusedParametricLIFNode()), (16,),
              3),
    "dropout": (lambda: flat(neuron.LIFNode(), layer.Dropout(0.4), layer.Dropout2d(0.2)), (16,), 3),
    "synapse filter": (lambda: flat(neuron.LIFNode(), layer.SynapseFilter(tau=3.0), layer.Linear(20, 20),
                                    neuron.IFNode()), (16,), 3),
    "stored v": (lambda: flat(neuron.LIFNode(store_v_seq=True)), (16,), 3),
    "recurrent": (lambda: flat(layer.LinearRecurrentContainer(neuron.LIFNode(), 20, 20)), (16,), 3),
    "recurrent sum": (lambda: flat(layer.ElementWiseRecurrentContainer(
        neuron.IFNode(), element_wise_function=lambda x, y: x + 0.5 * y)), (16,), 3),
    "delay": (lambda: flat(neuron.LIFNode(), layer.Delay(2)), (16,), 3),
    "bntt": (lambda: flat(layer.BatchNormThroughTime1d(T, 20), neuron.LIFNode()), (16,), 4),
    "nested": (lambda: nn.Sequential(nn.ModuleDict({"a": flat(neuron.LIFNode(), classes=20)})["a"], nn.Sequential(
        nn.Sequential(neuron.LIFNode()), layer.Linear(20, 6))), (16,), 3),
    "shared channels": (lambda: flat(SharedLIFNode(groups=4, tau=1.7)), (16,), 3),
    "shared layers": (lambda: small_resnet(sharing="L+C#2"), (2, 8, 8), 1.5),
    "reversible neurons": (lambda: flat(ReversibleLIFNode(groups=2), layer.Linear(20, 20), ReversibleLIFNode()), (16,),
                           1),
    "reversible blocks": (reversible_blocks, (2, 8, 8), 2),
}
SINGLE = {"encoder inside": (lambda: nn.Sequential(Clamped(), encoding.WeightedPhaseEncoder(T),
                                                   *flat(neuron.LIFNode())), (16,), 3),
          "one membrane, two calls": (Twice, (16,), 3), "a user's state": (Own, (16,), 3),
          "batch last, in place": (InPlace, (16,), 3)}
MULTI = {"resnet19": (small_resnet, (2, 8, 8), 1.5),
         "rev_spiking_resnet21": (lambda: model.rev_spiking_resnet21(6, 2, planes=(4, 4, 8, 8)), (2, 8, 8), 1.5),
         "rev_spikformer": (lambda: model.rev_spikformer(6, 2, width=8, depth=1, heads=2), (2, 8, 8), 1.5)}
CASES = [(name, mode, *case) for mode, cases in (("s", BOTH | SINGLE), ("m", BOTH | MULTI))
         for name, case in cases.items()]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(net: nn.Module, x_seq: Tensor, mode: str) -> Tensor:
    """Scores of every step [T, N, K], by the framework alone."""
    net = copy.deepcopy(net).eval()
    functional.reset_net(net)
    with torch.no_grad():
        return net(x_seq) if mode == "m" else torch.stack([net(x) for x in x_seq])


def contents(net: nn.Module) -> list:
    """Everything that could change: classes, attributes, tensors by value."""
    def of(value):
        if isinstance(value, Tensor):
            return "tensor", value.clone()
        if isinstance(value, dict):
            return {key: of(part) for key, part in value.items()}
        return [of(part) for part in value] if isinstance(value, list | tuple) else value

    return [(type(m), {key: of(value) for key, value in vars(m).items() if key != "_modules"}) for m in net.modules()]


def equal(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a is b or a == b


@pytest.mark.parametrize("name, mode, build, size, gain", CASES, ids=[f"{name}-{mode}" for name, mode, *_ in CASES])
def test_as_without_leaving(name, mode, build, size, gain):
    torch.manual_seed(1)
    net = brought_up(build(), gain)
    functional.set_step_mode(net, mode)
    x_seq = images(*size)
    if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        settled(net, x_seq, mode)
    scores = plain(net, x_seq, mode)
    scale = 3 / float(scores.abs().max().clamp_min(1e-6))  # entropies from sure to unsure
    stopped = early_exit(net, between(scores * scale), output=lambda out: out * scale)
    before = contents(net)
    result = stopped(x_seq)
    assert_same(result, scores * scale, stopped.threshold)
    assert equal(before, contents(net)) and net.training
    assert result.mean_steps == result.steps.double().mean() and sum(result.exits) == pytest.approx(1)
    assert torch.equal(stopped(x_seq).outputs, result.outputs)  # what is known of the net is used again


@pytest.mark.parametrize("method", ["neuron", "compress", "recompute", "auto", "reversible"])
def test_retrofitted(method):
    net = brought_up(convolutions())
    functional.set_step_mode(net, "m")
    x_seq = images(2, 8, 8)
    sj_memext.retrofit(net, method, **({"sample": x_seq, "budget": "1GiB"} if method == "auto" else {}))
    scores = plain(net, x_seq, "m")
    stopped = early_exit(net, between(scores))
    assert_same(stopped(x_seq), scores, stopped.threshold)
    if method != "reversible":
        sj_memext.restore(net)
        assert_same(stopped(x_seq), plain(net, x_seq, "m"), stopped.threshold)  # looked at anew: other classes


def test_shared_at_the_first_forward():
    """share() without a sample decides at the first forward pass, which is then one of early exit's."""
    x_seq = images(2, 8, 8)
    net = settled(brought_up(small_resnet(), 1.5), x_seq, "m").eval()
    wanted = sj_memext.share(copy.deepcopy(net), "auto", sample=x_seq)
    sj_memext.share(net, "auto")
    scores = plain(wanted, x_seq, "m")
    scale = 3 / float(scores.abs().max())
    stopped = early_exit(net, between(scores * scale), output=lambda out: out * scale)
    assert_same(stopped(x_seq), scores * scale, stopped.threshold)
    fresh = sj_memext.share(settled(brought_up(small_resnet(), 1.5), x_seq, "m").train(False), "auto")
    fresh.training = True
    assert early_exit(fresh).all_steps(x_seq[:1]).shape == (1, N, 6) and fresh.training  # one step, nothing to look at
    assert len(sj_memext.report(fresh).changed) == len(sj_memext.report(wanted).changed)
    assert str(sj_memext.report(net)) == str(sj_memext.report(wanted)) and not net.training
    assert all(m.v == 0 for m in net.modules() if isinstance(m, neuron.LIFNode))


class Repeats(nn.Module):
    """As in SpikingJelly's tutorials: shows an image T times by itself, and gives the mean."""

    def __init__(self):
        super().__init__()
        self.T, self.body = T, brought_up(convolutions())
        functional.set_step_mode(self.body, "m")

    def forward(self, x):
        return self.body(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).mean(0)


def test_a_network_that_repeats_its_image():
    net, x = Repeats(), images(2, 8, 8)[0] * 2
    scores = plain(net.body, x.expand(T, *x.shape), "m")
    stopped = early_exit(net, between(scores), steps_attribute="T")
    assert_same(stopped(x), scores, stopped.threshold)
    assert net.T == T and stopped.T == T
    with pytest.raises(MemextError, match=r"returned \(12, 6\)|raised"):
        early_exit(net, 0.5, T=4, output=lambda out: out[:, :1])(x)


@pytest.mark.parametrize("encoder", [encoding.PoissonEncoder, lambda: encoding.WeightedPhaseEncoder(T)],
                         ids=["random", "stateful"])
def test_encoders(encoder):
    """Draws for all samples in each step: nobody's spikes depend on who has left."""
    net, encode, x = brought_up(flat(neuron.LIFNode())), encoder(), images(16)[0].abs().clamp(0, 0.96)
    torch.manual_seed(5)
    x_seq = torch.stack([encode(x) for _ in range(T)])
    scores = plain(net, x_seq, "s")
    functional.reset_net(encode) if isinstance(encode, encoding.StatefulEncoder) else None
    stopped = early_exit(net, between(scores), T=T, encode=encode)
    torch.manual_seed(5)
    assert_same(stopped(x), scores, stopped.threshold)
    assert getattr(encode, "t", 0) == 0
    drawing = nn.Sequential(encoding.PoissonEncoder(), *brought_up(flat(neuron.LIFNode())))
    with pytest.raises(MemextError, match=r"draws random numbers.*encode="):
        early_exit(drawing, 0.5, T=T)(x)


def test_left_as_it_was():
    """Not at rest before, partly in evaluation mode: so afterwards, also after a refusal; random numbers untouched."""
    net = flat(neuron.LIFNode(store_v_seq=True), layer.SynapseFilter(), layer.Delay(2))
    net[2].eval()
    net(images(16)[0][:4]), net(images(16)[1][:4])
    before, numbers = contents(net), torch.get_rng_state()
    early_exit(net, 0.9)(images(16))
    assert equal(before, contents(net)) and not net[2].training and net[1].training
    with pytest.raises(MemextError):
        early_exit(net, 0.9)(images(17))
    assert equal(before, contents(net)) and torch.equal(numbers, torch.get_rng_state())
    net[1].register_memory("count", torch.zeros(3))  # a reset writes such a state in place
    net[1].count += 2
    early_exit(net, 0.9)(images(16))
    assert net[1].count.tolist() == [2, 2, 2]


def test_odd_batches_and_modes():
    """One sample, one step, half precision under autocast, float64, inference mode, a compiled-like wrapper."""
    net = brought_up(convolutions())
    x_seq = images(2, 8, 8)
    for i in range(3):
        one = early_exit(net, 0.8)(x_seq[:, i:i + 1])
        assert one.steps.tolist() == early_exit(net, 0.8)(x_seq).steps[i:i + 1].tolist()
    assert early_exit(net, 0.8)(x_seq[:1]).steps.tolist() == [1] * N
    assert early_exit(net, 2)(x_seq).steps.tolist() == [1] * N
    with torch.inference_mode():
        inside = early_exit(net, 0.8)(x_seq)
    assert torch.equal(inside.steps, early_exit(net, 0.8)(x_seq).steps)
    net(x_seq[0]).sum().backward()  # nothing of inference mode stays
    functional.reset_net(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert early_exit(net, 0.8)(x_seq).outputs.dtype == torch.float32
    double = copy.deepcopy(net).double()
    scores = plain(double, x_seq.double(), "s")
    stopped = early_exit(double, between(scores))
    assert_same(stopped(x_seq.double()), scores, stopped.threshold)
    assert stopped(x_seq.double()).outputs.dtype == torch.float64

    class Wrapper(nn.Module):  # as torch.compile's
        def __init__(self):
            super().__init__()
            self._orig_mod = double

        def forward(self, x):
            return self._orig_mod(x)

    assert torch.equal(early_exit(Wrapper(), stopped.threshold)(x_seq.double()).steps, stopped(x_seq.double()).steps)


def test_copies():
    """A copy has a net of its own."""
    net, x_seq = brought_up(convolutions()), images(2, 8, 8)
    stopped = early_exit(net, 0.8)
    wanted = stopped(x_seq)
    for copied in (copy.deepcopy(stopped), pickle.loads(pickle.dumps(stopped))):
        stopped._step.net[0].weight.data.zero_()
        found = copied(x_seq)
        assert torch.equal(found.outputs, wanted.outputs) and copied.threshold == 0.8
        assert copied._step.net is not net and copied._step.modules[0] is copied._step.net
        assert len(stopped(x_seq).outputs.unique(dim=0)) < 3


def test_not_under_the_threshold():
    """An entropy of exactly 0 is not under 0: threshold 0 takes all steps."""
    net = nn.Sequential(layer.Linear(2, 3, bias=False), layer.SynapseFilter())
    net[0].weight.data = torch.tensor([[500.0, 0], [0, 500], [0, 0]])
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    assert early_exit(net, 0, T=3)(x).steps.tolist() == [3] * 3
    found = early_exit(net, 1e-9, T=3)(x)
    assert found.steps.tolist() == [1] * 3 and found.prediction.tolist() == [0, 1, 0]


def test_a_step_with_the_number_of_the_step():
    """T-RevSNN on events: each column has decays of its own, so the step takes its number; states are lists."""
    torch.manual_seed(1)
    net = model.t_revsnn((8, 8, 8, 8), 6, T=T, variant="events", v_threshold=0.1).eval()
    x_seq = images(2, 16, 16).abs() * 3

    def step(x, t, states):
        states = net.step(t, x, states)
        return net.head(states[-1].mean((-2, -1))) * 50, (t + 1, states)  # of potentials: few neurons fire

    scores, state = [], (0, None)
    with torch.no_grad():
        for x in x_seq:
            out, state = step(x, *state)
            scores.append(out)
    scores = torch.stack(scores)
    stopped = early_exit(step, between(scores), state=(0, None))
    assert_same(stopped(x_seq), scores, stopped.threshold, many=False)


# ---- refused --------------------------------------------------------------------------------------------------------

class Counting(nn.Module):
    """Adapts to the whole batch."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.head = nn.Linear(16, 20), neuron.LIFNode(), nn.Linear(20, 6)
        self.register_buffer("level", torch.zeros(20))

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        self.level = self.level + spikes.mean(0)
        return self.head(spikes - 0.1 * self.level)


class Hidden(nn.Module):
    """Its neuron stands in a plain list, where nobody finds it."""

    def __init__(self):
        super().__init__()
        self.fc, self.neurons, self.head = nn.Linear(16, 20), [neuron.LIFNode()], nn.Linear(20, 6)

    def forward(self, x):
        return self.head(self.neurons[0](self.fc(x)))


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.head = nn.Linear(16, 20), neuron.LIFNode(), nn.Linear(20, 6)

    def forward(self, x):
        both = self.lif(self.fc(torch.cat((x, -x))))
        return self.head(both[:len(x)] - both[len(x):])


class OverBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class OfOneLength(nn.Module):
    def forward(self, x):
        assert len(x) in (1, T), "another length"
        return x


class Sorted(nn.Module):
    """Mixes the steps of a sequence."""

    def forward(self, x):
        return x.sort(0).values


def multi(net):
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("build, words", [
    (Counting, r"the state 'level' cannot be gathered.*shape \(20,\) with three samples"),
    (Doubled, r"the state 'lif.v' cannot be gathered.*shape \(6, 20\) with three samples and \(4, 20\) with two"),
    (lambda: flat(OverBatch(), neuron.LIFNode()), "depends on the other samples in the batch"),
    (Hidden, "random numbers.*or carries something .* no attribute, buffer or memory"),
    (lambda: multi(flat(neuron.LIFNode(), layer.TemporalEffectiveBatchNorm1d(T, 20))),
     r"made 5 steps of a sequence of one.*0 \(TemporalEffective|made 5 steps of a sequence of one.*2 \(TemporalEffe"),
    (lambda: multi(flat(neuron.LIFNode(), OfOneLength())), "raised AssertionError on a sequence of 3: another length"),
    (lambda: multi(flat(Sorted(), neuron.LIFNode())), "sequence of 3 steps is neither the steps one by one"),
], ids=["level", "doubled", "over the batch", "hidden", "of T steps", "one length", "sorted"])
def test_refused_by_name(build, words):
    net = brought_up(build())
    before = contents(net)
    with pytest.raises(MemextError, match=words):
        early_exit(net, 0.9)(images(16))
    assert equal(before, contents(net))


def test_outputs_that_are_no_scores():
    x = images(16)
    for build, options, words in (
            (lambda: nn.Sequential(layer.Linear(16, 1), neuron.LIFNode()), {}, r"returned \(3, 1\).*at least two"),
            (lambda: nn.Sequential(layer.Linear(16, 6), layer.Delay(1)), {"output": lambda out: (out, out)},
             "a tuple of 2: Tensor, Tensor; say which")):
        with pytest.raises(MemextError, match=words):
            early_exit(build(), 0.5, **options)(x)
