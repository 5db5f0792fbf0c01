"""Code as it was written for SpikingJelly 0.0.0.0.12 (clock_driven, event_driven), one function per subject.

Each returns {name: tensor, or a list of strings}. make_golden.py runs them on the old wheel and keeps what they return;
test_compat_values.py runs them through sj_memext.compat.
"""
from __future__ import annotations

import copy

import torch
from legacy_grid import SHAPE, STEPS, data, fill, grid, run, stacked
from torch import nn

RELEASE = "0.0.0.0.12"


def _multi_grid(name):
    from spikingjelly.clock_driven import neuron, surrogate
    cls = getattr(neuron, f"MultiStep{name}")
    return stacked([run(cls(**options, surrogate_function=getattr(surrogate, sg)(), backend="torch"), True)
                    for options, sg in grid(name)])


def multi_step_if():
    return _multi_grid("IFNode")


def multi_step_lif():
    return _multi_grid("LIFNode")


def multi_step_plif():
    return _multi_grid("ParametricLIFNode")


def single_step():
    from spikingjelly.clock_driven import neuron, surrogate
    out = {}
    for name in ("IFNode", "LIFNode", "ParametricLIFNode"):
        runs = stacked([run(getattr(neuron, name)(**options, surrogate_function=getattr(surrogate, sg)()), False)
                        for options, sg in grid(name, ("ATan", "PiecewiseLeakyReLU"))])
        out.update({f"{name}.{key}": value for key, value in runs.items()})
    return out


def positional_and_eval():
    """The old order of arguments, defaults, and eval mode."""
    from spikingjelly.clock_driven import neuron, surrogate
    sg = surrogate.Erf(1.5)
    nodes = [neuron.IFNode(0.8, None, sg, True, False), neuron.LIFNode(3.0, False, 0.8, -0.1, sg, True, False),
             neuron.ParametricLIFNode(3.0, False, 0.8, None, sg, True), neuron.IFNode(), neuron.LIFNode(),
             neuron.ParametricLIFNode()]
    multi = [neuron.MultiStepIFNode(0.8, None, sg, True, "torch", 64),
             neuron.MultiStepLIFNode(3.0, False, 0.8, -0.1, sg, True, "torch", 64),
             neuron.MultiStepParametricLIFNode(3.0, False, 0.8, None, sg, True, "torch"), neuron.MultiStepIFNode(),
             neuron.MultiStepLIFNode(), neuron.MultiStepParametricLIFNode()]
    out = {}
    for training in (True, False):
        runs = [run(copy.deepcopy(n).train(training), False) for n in nodes]
        runs += [run(copy.deepcopy(n).train(training), True) for n in multi]
        out.update({f"{training}.{key}": torch.stack([r[key] for r in runs]) for key in ("spikes", "v_seq", "grad_x")})
    out["repr"] = [n.extra_repr() for n in nodes + multi]
    out["names"] = [type(n).__name__ for n in nodes + multi]
    out["keys"] = [",".join(n.state_dict()) for n in nodes + multi]
    return out


def other_neurons():
    from spikingjelly.clock_driven import neuron, surrogate
    out = {}
    for v_reset in (None, -0.3):
        for detach in (False, True):
            common = {"v_reset": v_reset, "detach_reset": detach, "v_threshold": 0.9,
                      "surrogate_function": surrogate.ATan()}
            rest = {} if v_reset is None else {"v_rest": 0.1}
            made = {"qif": neuron.QIFNode(tau=2.5, v_c=0.6, a0=0.7, **rest, **common),
                    "eif": neuron.EIFNode(tau=2.5, delta_T=0.7, theta_rh=0.6, **rest, **common),
                    "liaf": neuron.LIAFNode(torch.relu, True, 2.5, False, 0.9, v_reset, surrogate.ATan(), detach),
                    "liaf_v": neuron.LIAFNode(torch.tanh, False, 2.5, True, 0.9, v_reset, surrogate.ATan(), detach)}
            multi = {"meif": neuron.MultiStepEIFNode(tau=2.5, delta_T=0.7, theta_rh=0.6, **rest, **common)}
            for name, node in {**made, **multi}.items():
                for key, value in run(node, name in multi).items():
                    out[f"{name}.{v_reset}.{detach}.{key}"] = value
    out["defaults"] = torch.stack([run(node, False)["spikes"] for node in (neuron.QIFNode(), neuron.EIFNode())])
    out["repr"] = [neuron.QIFNode().extra_repr(), neuron.EIFNode().extra_repr(), neuron.MultiStepEIFNode().extra_repr()]
    return out


def overridden_equations():
    """Who changed a neuron overrode one of its three equations; in both step modes it has to be run."""
    from spikingjelly.clock_driven import neuron, surrogate

    class Online(neuron.LIFNode):  # leaves the temporal path out of the gradient
        def neuronal_charge(self, x):
            v = self.v.detach() if isinstance(self.v, torch.Tensor) else self.v
            self.v = v + (x - v) / self.tau

    class OnlineMulti(neuron.MultiStepLIFNode):
        def neuronal_charge(self, x):
            v = self.v.detach() if isinstance(self.v, torch.Tensor) else self.v
            self.v = v + (x - v) / self.tau

    class Noisy(neuron.MultiStepIFNode):
        def neuronal_fire(self):
            return self.surrogate_function(0.5 * self.v - self.v_threshold)

    class Partial(neuron.IFNode):
        def neuronal_reset(self, spike):
            super().neuronal_reset(0.5 * spike)

    class Doubled(neuron.ParametricLIFNode):
        def neuronal_charge(self, x):
            super().neuronal_charge(2 * x)

    class Own(neuron.BaseNode):
        def __init__(self, decay):
            super().__init__(0.7, None, surrogate.ATan(), True)
            self.decay = decay

        def neuronal_charge(self, x):
            self.v = self.decay * self.v + x

    class Forward(neuron.MultiStepLIFNode):
        def forward(self, x_seq):
            return super().forward(x_seq * 1.5)

    class ByHand(neuron.LIFNode):
        def forward(self, x):
            self.neuronal_charge(x)
            spike = self.neuronal_fire()
            self.v = self.v - 0.9 * spike
            return spike

    class StepsOfMulti(neuron.MultiStepLIFNode):  # single steps inside a multi-step node
        def forward(self, x_seq):
            self.v_seq = []
            spikes = []
            for x in x_seq:
                spikes.append(neuron.LIFNode.forward(self, x))
                self.v_seq.append(self.v)
            self.v_seq = torch.stack(self.v_seq)
            return torch.stack(spikes)

    out = {}
    nodes = {"online": Online(1.7), "noisy": Noisy(0.6), "multi": OnlineMulti(1.7), "partial": Partial(0.6),
             "doubled": Doubled(1.7), "own": Own(0.4), "forward": Forward(1.7), "by_hand": ByHand(1.7),
             "steps": StepsOfMulti(1.7)}
    for name, node in nodes.items():
        for training in (True, False):
            node.reset()
            node.train(training)
            for key, value in run(node, name in ("noisy", "multi", "forward", "steps")).items():
                out[f"{name}.{training}.{key}"] = value
    node = neuron.MultiStepLIFNode(2.0)
    node.neuronal_charge = lambda x: setattr(node, "v", 0.5 * node.v + x)
    out["on_object"] = run(node, True)["v_seq"]
    return out


def reset_and_threshold():
    """reset() sets v_threshold and v_reset back, too."""
    from spikingjelly.clock_driven import functional, neuron
    node = neuron.MultiStepIFNode(v_threshold=0.8, v_reset=-0.2)
    x, out = data(1, STEPS, *SHAPE), {}
    node.v_threshold = 2.5
    out["changed"] = node(x)
    functional.reset_net(nn.Sequential(node))
    out["back"] = node(x)
    node.set_reset_value("v_threshold", 0.4)
    functional.reset_net(nn.Sequential(node))
    out["new"] = node(x)
    out["thresholds"] = torch.tensor([node.v_threshold, node.v_reset])
    single, target = neuron.LIFNode(v_reset=None), torch.eye(4)[:2]
    for training in (True, False):
        single.train(training)
        functional.set_threshold_margin(single, target, 1.0, 0.3, 1.2)
        out[f"margin.{training}"] = torch.stack([single(step) for step in x])
        functional.reset_net(single)
    out["margin_back"] = torch.stack([single(step) for step in x])
    out["v_seq_after_reset"] = [str(node.v_seq is None) for _ in [node.reset()]]
    return out


def layers():
    from spikingjelly.clock_driven import layer, neuron
    out = {}

    def put(name, module, *inputs, keys=True):
        xs = [x.clone().requires_grad_() for x in inputs]
        ys = [module(x) for x in xs]
        sum((y * data(9, *y.shape)).sum() for y in ys).backward()
        out[f"{name}.y"] = torch.stack(ys).detach()
        out[f"{name}.grad"] = torch.stack([x.grad for x in xs])
        for i, (_, p) in enumerate(sorted(module.named_parameters())):
            if p.grad is not None:
                out[f"{name}.grad{i}"] = p.grad
        if keys:
            out[f"{name}.keys"] = sorted(module.state_dict())

    image, flat = [data(i, 2, 3, 4, 4) for i in (1, 2)], [data(i, 2, 6) for i in (1, 2)]
    put("neunorm", fill(layer.NeuNorm(3, 4, 4, 0.8, True)), *image)
    put("neunorm_c", fill(layer.NeuNorm(3, 4, 4)), *image)
    put("dct", layer.DCT(2), *image)
    put("axat", fill(layer.AXAT(4, 3)), *image)
    put("filter", layer.SynapseFilter(5.0), *flat)
    put("filter_learn", layer.SynapseFilter(5.0, True), *flat)
    put("pool", layer.ChannelsPool(nn.MaxPool1d(3, 1)), *image)
    put("pool_avg", layer.ChannelsPool(nn.AvgPool1d(3)), *image)
    put("convbn", fill(layer.ConvBatchNorm2d(3, 5, 3, 1, 1)), *image)
    for name, module, inputs in (("dropout", layer.Dropout(0.4), flat), ("dropout2d", layer.Dropout2d(), image),
                                 ("m_dropout", layer.MultiStepDropout(0.4), [data(4, 5, 2, 6)]),
                                 ("m_dropout2d", layer.MultiStepDropout2d(), [data(4, 3, 2, 3, 4, 4)]),
                                 ("dropconnect", fill(layer.DropConnectLinear(6, 3, p=0.4)), flat),
                                 ("dropconnect_i", fill(layer.DropConnectLinear(6, 3, False, 0.4, 8, True, None)),
                                  flat)):
        torch.manual_seed(11)
        put(name, module, *inputs)
        if name == "m_dropout":
            out["m_dropout.p"] = torch.tensor([layer.MultiStepDropout().p, layer.MultiStepDropout2d().p,
                                               layer.Dropout2d().p])
    torch.manual_seed(11)
    out["dropconnect_eval"] = fill(layer.DropConnectLinear(6, 3, samples_num=9)).eval()(flat[0]).detach()

    x_seq = data(4, 5, 2, 6)
    put("seq_to_ann", fill(layer.SeqToANNContainer(nn.Linear(6, 4), nn.BatchNorm1d(4))), x_seq)
    put("multi", fill(layer.MultiStepContainer(nn.Linear(6, 4), neuron.LIFNode(1.5, v_threshold=0.3))), x_seq)
    put("seq_to_ann_of_multi", layer.SeqToANNContainer(neuron.MultiStepLIFNode(v_threshold=0.5)), x_seq, keys=False)
    put("multi_of_multi", layer.MultiStepContainer(neuron.MultiStepIFNode(v_threshold=0.5)), x_seq, keys=False)
    put("element_wise", fill(layer.ElementWiseRecurrentContainer(
        nn.Sequential(nn.Linear(6, 6), neuron.IFNode(0.5)), lambda y, x: y + x)), *flat)
    put("recurrent", fill(layer.LinearRecurrentContainer(
        nn.Sequential(nn.Linear(6, 4), neuron.LIFNode(1.5, v_threshold=0.4)), 6, 4)), *flat)
    put("tdbn1", layer.MultiStepThresholdDependentBatchNorm1d(0.8, 1.1, 6), x_seq)
    put("tdbn2", layer.MultiStepThresholdDependentBatchNorm2d(0.8, 1.1, 3), data(4, 2, 2, 3, 4, 4))
    put("tdbn3", layer.MultiStepThresholdDependentBatchNorm3d(0.8, 1.1, 3), data(4, 2, 2, 3, 2, 2, 2))
    put("attention", fill(layer.MultiStepTemporalWiseAttention(8, 4, 4)), data(4, 8, 2, 3, 4, 4))
    put("attention2", fill(layer.MultiStepTemporalWiseAttention(8, 2, 2)), data(4, 8, 2, 6))

    fc = fill(nn.Linear(4, 3, bias=False))
    learner = layer.STDPLearner(3.0, 2.0, lambda w: -0.3 * w, lambda w: 0.2 * w)
    for i in range(4):
        learner.stdp((data(i, 4) > 0.5).float(), (data(i + 20, 3) > 0.5).float(), fc, 0.1)
    out["stdp"] = fc.weight.detach()
    return out


def functions():
    from spikingjelly.clock_driven import functional
    out = {}
    conv, bn = fill(nn.Conv2d(3, 4, 3, bias=False)), nn.BatchNorm2d(4)
    fill(bn, 8)
    for i in range(3):
        bn(conv(data(i, 4, 3, 6, 6)))
    bn.eval()
    out["weight"] = functional.fused_conv2d_weight_of_convbn2d(conv, bn).detach()
    out["bias"] = functional.fused_conv2d_bias_of_convbn2d(conv, bn).detach()
    out["fused"] = functional.fuse_convbn2d(conv, bn)(data(3, 2, 3, 6, 6)).detach()
    functional.scale_fused_conv2d_weight_of_convbn2d(conv, bn, 1.5, 0.1)
    functional.scale_fused_conv2d_bias_of_convbn2d(conv, bn, 1.5, 0.1)
    out["scaled"] = bn(conv(data(3, 2, 3, 6, 6))).detach()
    spikes, labels = (data(3, 6, 4, 5) > 0.5).float(), (data(4, 6, 3) > 0.5).float()
    for kind, args in (("linear", ()), ("sigmoid", (0.3,)), ("gaussian", (2.0,)), ("polynomial", (2,))):
        out[f"kernel.{kind}"] = functional.kernel_dot_product(spikes.flatten(1), spikes.flatten(1), kind, *args)
    for loss in ("mse", "l1"):
        out[f"similar.{loss}"] = functional.spike_similar_loss(spikes, labels, "linear", loss)
    out["one_hot"] = functional.redundant_one_hot(torch.tensor([0, 2, 1]), 3, 4)
    out["first"] = functional.first_spike_index(spikes).float()
    out["tet"] = functional.temporal_efficient_training_cross_entropy(data(3, 5, 2, 4), torch.tensor([1, 3]))
    fc = fill(nn.Linear(5, 5))
    modules = [fc, nn.ReLU()]
    out["multi"] = functional.multi_step_forward(data(1, 3, 2, 5), modules).detach()
    out["ann"] = functional.seq_to_ann_forward(data(1, 3, 2, 5), nn.Sequential(*modules)).detach()
    torch.manual_seed(4)
    functional.kaiming_normal_conv_linear_weight(nn.Sequential(fc))
    out["kaiming"] = fc.weight.detach()
    return out


def encoders():
    from spikingjelly.clock_driven import encoding
    out, x = {}, torch.sigmoid(data(2, 2, 5))
    torch.manual_seed(9)
    poisson = encoding.PoissonEncoder()
    out["poisson"] = torch.stack([poisson(x).float() for _ in range(6)])
    for function in ("linear", "log"):
        latency = encoding.LatencyEncoder(7, function)
        out[f"latency.{function}"] = torch.stack([latency(x).float() for _ in range(9)])
        latency.reset()
        out[f"latency_again.{function}"] = torch.stack([latency(1 - x).float() for _ in range(3)])
    periodic = encoding.PeriodicEncoder((data(3, 4, 2, 5) > 0.5).float())
    out["periodic"] = torch.stack([periodic() for _ in range(9)])
    phase = encoding.WeightedPhaseEncoder(8)
    out["phase"] = torch.stack([phase(x * 0.9).float() for _ in range(8)])
    return out


def recurrent():
    from spikingjelly.clock_driven import rnn, surrogate
    out, x = {}, data(2, 4, 2, 5)
    for name, make in (("gru", lambda: rnn.SpikingGRU(5, 4, 1, surrogate_function1=surrogate.ATan())),
                       ("gru_two", lambda: rnn.SpikingGRU(5, 4, 1, False, surrogate_function1=surrogate.ATan(),
                                                          surrogate_function2=surrogate.Sigmoid())),
                       ("bi_gru", lambda: rnn.SpikingGRU(5, 4, 2, bidirectional=True)),
                       ("rnn", lambda: rnn.SpikingVanillaRNN(5, 4, 1))):
        net = fill(make())
        y, _ = net(x)
        (y * data(5, *y.shape)).sum().backward()
        out[f"{name}.y"] = y.detach()
        out[f"{name}.grads"] = torch.cat([p.grad.flatten() for _, p in sorted(net.named_parameters())])
        out[f"{name}.keys"] = sorted(net.state_dict())
    return out


def surrogates():
    from spikingjelly.clock_driven import surrogate
    made = {name: [(), {}] for name in ("ATan", "Sigmoid", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign",
                                        "NonzeroSignLogAbs", "Erf", "PiecewiseLeakyReLU", "S2NN", "QPseudoSpike",
                                        "SquarewaveFourierSeries")}
    other = {"ATan": (3.0,), "Sigmoid": (2.5,), "PiecewiseQuadratic": (1.5,), "PiecewiseExp": (1.5,),
             "SoftSign": (3.0,), "NonzeroSignLogAbs": (2.0,), "Erf": (1.2,), "PiecewiseLeakyReLU": (0.7, 0.1),
             "S2NN": (3.0, 0.7),
             "QPseudoSpike": (3.0,), "SquarewaveFourierSeries": (3, 5.0)}
    out = {}
    for name in made:
        for args in ((), other[name]):
            for spiking in (True, False):
                function = getattr(surrogate, name)(*args, spiking=spiking)
                x = torch.linspace(-1.9, 1.83, 41).requires_grad_()
                y = function(x)
                out[f"{name}.{len(args)}.{spiking}.y"] = y.detach()
                out[f"{name}.{len(args)}.{spiking}.grad"], = torch.autograd.grad((y * data(2, 41)).sum(), x)

    class Mine(surrogate.SurrogateFunctionBase):
        def __init__(self, alpha=1.5, spiking=True):
            super().__init__(alpha, spiking)

        @staticmethod
        def spiking_function(x, a):
            return surrogate.sigmoid.apply(x, a)

        @staticmethod
        def primitive_function(x, a):
            return (x * a).sigmoid()

    class Two(surrogate.MultiArgsSurrogateFunctionBase):
        def __init__(self, a, b, spiking=True):
            super().__init__(spiking)
            self.a, self.b = a, b

        def forward(self, x):
            return surrogate.atan.apply(x * self.b, self.a)

    from spikingjelly.clock_driven import neuron
    for name, function in (("mine", Mine(2.5)), ("mine_off", Mine(2.5, False)), ("two", Two(1.5, 0.7))):
        for key, value in run(neuron.MultiStepLIFNode(surrogate_function=function), True).items():
            out[f"{name}.{key}"] = value
    mine = Mine()
    mine.set_spiking_mode(False)
    out["mine.repr"] = [mine.extra_repr()]
    return out


def monitors():
    from spikingjelly.clock_driven import functional, monitor, neuron
    net = nn.Sequential(fill(nn.Linear(6, 5)), neuron.MultiStepLIFNode(), fill(nn.Linear(5, 4), 9),
                        neuron.MultiStepIFNode(0.4))
    single = nn.Sequential(fill(nn.Linear(6, 5)), neuron.LIFNode(v_threshold=0.5))
    out = {}
    for name, tested, backend in (("multi", net, "torch"), ("single", single, "torch"), ("numpy", net, "numpy")):
        watch = monitor.Monitor(tested, torch.device("cpu"), backend)
        watch.enable()
        functional.reset_net(tested)
        with torch.no_grad():
            tested(data(3, *((4, 3, 6) if tested is net else (3, 6))))
        chosen = [n for n, _ in tested.named_modules() if n in watch.module_dict]
        out[name] = torch.tensor([float(watch.get_avg_firing_rate()), float(watch.get_nonfire_ratio()),
                                  *(float(watch.get_avg_firing_rate(False, n)) for n in chosen),
                                  *(float(watch.get_nonfire_ratio(False, n)) for n in chosen)])
        watch.disable()
    return out


def events():
    from spikingjelly.event_driven import encoding, neuron
    tempotron, out = fill(neuron.Tempotron(6, 3, 20)), {}
    spikes = (data(3, 4, 6) * 6).requires_grad_()
    for kind in ("v", "v_max", "spikes"):
        y = tempotron(spikes, kind)
        out[kind] = y.detach()
        out[f"{kind}.grad"], = torch.autograd.grad((y * data(5, *y.shape)).sum(), tempotron.fc.weight)
    out["loss"] = neuron.Tempotron.mse_loss(tempotron(spikes, "v_max"), 1.0, torch.tensor([0, 2, 1, 1]), 3).detach()
    out["keys"] = sorted(tempotron.state_dict())
    tuning = encoding.GaussianTuning(2, 5, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]))
    out["tuning"] = tuning.encode(data(4, 3, 2, 4), 40)
    return out


def models():
    from spikingjelly.clock_driven import functional, neuron, surrogate
    from spikingjelly.clock_driven.model import sew_resnet, spiking_resnet
    made = {"resnet": spiking_resnet.multi_step_spiking_resnet18(
                T=3, multi_step_neuron=neuron.MultiStepLIFNode, num_classes=5, tau=1.5, v_threshold=0.5,
                surrogate_function=surrogate.ATan(), detach_reset=True),
            "sew": sew_resnet.multi_step_sew_resnet18(
                T=3, cnf="ADD", multi_step_neuron=neuron.MultiStepIFNode, num_classes=5, v_threshold=0.5),
            "single": spiking_resnet.spiking_resnet18(single_step_neuron=neuron.IFNode, num_classes=5)}
    out = {}
    for name, net in made.items():
        for _, p in sorted(net.named_parameters()):
            p.data = data(p.shape[0], *p.shape, scale=1.0 / max(p[0].numel(), 1) ** 0.5,
                          shift=0.0 if p.dim() > 1 else 0.7)
        for x in (data(1, 2, 3, 32, 32), data(2, 3, 2, 3, 32, 32))[:1 if name == "single" else 2]:
            y = net(x)
            functional.reset_net(net)
            out[f"{name}.{x.dim()}"] = y.detach()
        y.sum().backward()
        out[f"{name}.grad"] = net.conv1.weight.grad[:4]
        out[f"{name}.statistics"] = torch.cat([net.bn1.running_mean, net.bn1.running_var,
                                               net.layer4[1].bn2.running_var])
        out[f"{name}.keys"] = [f"{key} {list(value.shape)}" for key, value in sorted(net.state_dict().items())]
    return out


def a_training():
    """Three steps of a small net in the style of the published ones, and what it fires."""
    from spikingjelly.clock_driven import functional, layer, neuron, surrogate

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
            self.lif = neuron.MultiStepLIFNode(tau=2.0, detach_reset=True, backend="torch")
            self.pool = layer.SeqToANNContainer(nn.MaxPool2d(2))
            self.drop = layer.MultiStepDropout2d(0.2)
            self.fc = nn.Linear(16, 6)
            self.plif = neuron.MultiStepParametricLIFNode(2.0, surrogate_function=surrogate.ATan(), v_threshold=0.5)
            self.head = nn.Linear(6, 3)

        def forward(self, x_seq):
            x_seq = self.drop(self.pool(self.lif(self.conv(x_seq))))
            return self.head(self.plif(self.fc(x_seq.flatten(2)))).mean(0)

    net, out = fill(Net()), {}
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), []
    torch.manual_seed(5)
    for i in range(3):
        loss = nn.functional.cross_entropy(net(data(i, 4, 5, 2, 4, 4)), torch.tensor([0, 1, 2, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        losses.append(loss.detach())
    out["losses"] = torch.stack(losses)
    out["weights"] = torch.cat([p.detach().flatten() for _, p in sorted(net.named_parameters())])
    out["keys"] = sorted(net.state_dict())
    return out


SCENARIOS = [multi_step_if, multi_step_lif, multi_step_plif, single_step, positional_and_eval, other_neurons,
             overridden_equations, reset_and_threshold, layers, functions, encoders, recurrent, surrogates, monitors,
             events, models, a_training]
