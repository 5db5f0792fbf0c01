"""Code as it was written for SpikingJelly 0.0.0.0.13 and 0.0.0.0.14 (activation_based with backend=)."""
from __future__ import annotations

import torch
from legacy_grid import FIRST, SHAPE, STEPS, data, fill, grid, stacked
from torch import nn

RELEASE = "0.0.0.0.14"


def _run(node, step_mode="m", two_calls=True):
    """As legacy_grid.run, with store_v_seq where the mode has it."""
    node.step_mode = step_mode
    x = data(1, STEPS, *SHAPE).requires_grad_()
    spikes, seen = [], []
    for part in ((x[:FIRST], x[FIRST:]) if two_calls else (x,)):
        if step_mode == "m":
            spikes.append(node(part))
            seen.append(node.v_seq)
        else:
            for step in part:
                spikes.append(node(step)[None])
                seen.append(node.v[None])
    spikes, seen = torch.cat(spikes), torch.cat(seen)
    loss = (spikes * data(5, STEPS, *SHAPE)).sum() + 0.3 * (seen * data(6, STEPS, *SHAPE)).sum() + node.v.sum()
    parameters = list(node.parameters())
    grads = torch.autograd.grad(loss, [x, *parameters])
    return {"spikes": spikes.detach(), "v_seq": seen.detach(), "grad_x": grads[0],
            "grad_w": grads[1] if parameters else torch.zeros(())}


def _grid(name, surrogates, step_mode):
    from spikingjelly.activation_based import neuron, surrogate
    cls = getattr(neuron, name)
    return stacked([_run(cls(**options, surrogate_function=getattr(surrogate, sg)(), backend="torch",
                             store_v_seq=step_mode == "m"), step_mode) for options, sg in grid(name, surrogates)])


def nodes():
    out = {}
    for name in ("IFNode", "LIFNode", "ParametricLIFNode"):
        for mode, chosen in (("m", ("ATan", "PiecewiseLeakyReLU", "LeakyKReLU")), ("s", ("ATan",))):
            runs = _grid(name, chosen, mode)
            out.update({f"{name}.{mode}.{key}": value for key, value in runs.items()})
    return out


def positional():
    """(..., step_mode, backend, store_v_seq), and node.backend, functional.set_backend."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    sg = surrogate.Erf(1.5)
    made = [neuron.IFNode(0.8, None, sg, True, "m", "torch", True),
            neuron.LIFNode(3.0, False, 0.8, -0.1, sg, True, "m", "torch", True),
            neuron.ParametricLIFNode(3.0, False, 0.8, None, sg, True, "m", "torch", True),
            neuron.KLIFNode(True, 3.0, False, 0.8, 0.0, sg, True, "m", "torch", True),
            neuron.QIFNode(2.0, 0.6, 0.7, 0.9, 0.1, -0.2, sg, True, "m", "torch", True),
            neuron.EIFNode(2.0, 0.7, 0.6, 0.9, 0.1, -0.2, sg, True, "m", "torch", True)]
    out = stacked([_run(node) for node in made])
    out["backends"] = [node.backend for node in made]
    net = nn.Sequential(*made, layer.Linear(4, 4))
    functional.set_backend(net, "torch", neuron.LIFNode)
    functional.reset_net(net)
    out["after"] = torch.stack([node(data(2, STEPS, *SHAPE)) for node in made])
    out["names"] = [type(node).__name__ for node in made]
    return out


def other_neurons():
    from spikingjelly.activation_based import neuron, surrogate
    out = {}
    for v_reset in (None, -0.3):
        for detach in (False, True):
            common = {"v_reset": v_reset, "detach_reset": detach, "v_threshold": 0.9, "backend": "torch",
                      "surrogate_function": surrogate.ATan(), "step_mode": "m", "store_v_seq": True}
            rest = {} if v_reset is None else {"v_rest": 0.1}
            made = {"qif": neuron.QIFNode(tau=2.5, v_c=0.6, a0=0.7, **rest, **common),
                    "eif": neuron.EIFNode(tau=2.5, delta_T=0.7, theta_rh=0.6, **rest, **common),
                    "izhikevich": neuron.IzhikevichNode(tau=2.5, a=0.1, b=0.2, tau_w=3.0, **rest, **common)}
            if v_reset is not None:  # without a reset value 0.0.0.0.14's raised
                made.update({f"klif.{scale}.{decay}": neuron.KLIFNode(scale, 2.5, decay, **common)
                             for scale in (False, True) for decay in (False, True)})
            for name, node in made.items():
                for mode in ("m", "s"):
                    node.reset()
                    for key, value in _run(node, mode).items():
                        out[f"{name}.{v_reset}.{detach}.{mode}.{key}"] = value
    return out


def overridden_equations():
    from spikingjelly.activation_based import base, neuron, surrogate

    class Online(neuron.LIFNode):
        def neuronal_charge(self, x):
            self.v = self.v.detach() + (x - self.v.detach()) / self.tau

    class Half(neuron.IFNode):
        def neuronal_fire(self):
            return self.surrogate_function(0.5 * self.v - self.v_threshold)

    class Partial(neuron.ParametricLIFNode):
        def neuronal_reset(self, spike):
            super().neuronal_reset(0.5 * spike)

    class Own(neuron.BaseNode):
        def __init__(self, decay, *args, **kwargs):
            super().__init__(0.7, None, surrogate.ATan(), True, *args, **kwargs)
            self.decay = decay

        def neuronal_charge(self, x):
            self.v = self.decay * self.v + x

    class Scaled(neuron.LIFNode):  # an own step that goes on with the class's
        def single_step_forward(self, x):
            return super().single_step_forward(1.5 * x)

    class Adaptive(neuron.IzhikevichNode):
        def neuronal_charge(self, x):
            self.v = self.v + (x - self.w) / self.tau

    class Jit(neuron.IFNode):
        @staticmethod
        def jit_hard_reset(v, spike, v_reset):
            return v - 0.4 * spike

    class Trace(base.MemoryModule):  # a stateful module of one's own
        def __init__(self):
            super().__init__()
            self.register_memory("v", 0.0)
            self.step_mode, self.v_seq = "m", None

        def single_step_forward(self, x):
            self.v = 0.5 * self.v + x
            return torch.relu(self.v - 0.5)

    out = {}
    nodes = {"online": Online(1.7, store_v_seq=True), "half": Half(0.6, store_v_seq=True),
             "partial": Partial(1.7, store_v_seq=True), "own": Own(0.4, "m", "torch", True),
             "scaled": Scaled(1.7, store_v_seq=True), "adaptive": Adaptive(store_v_seq=True, a=0.1, b=0.2),
             "jit": Jit(0.6, store_v_seq=True)}
    for name, node in nodes.items():
        for mode in ("m", "s"):
            node.reset()
            for key, value in _run(node, mode).items():
                out[f"{name}.{mode}.{key}"] = value
    trace = Trace()
    x = data(1, STEPS, *SHAPE).requires_grad_()
    y = trace(x)
    out["trace"], out["trace.grad"] = y.detach(), torch.autograd.grad((y * data(5, *y.shape)).sum(), x)[0]
    return out


def layers():
    from spikingjelly.activation_based import functional, layer, neuron
    out = {}
    for mode in ("s", "m"):
        x = data(3, 4, 2, 6) if mode == "m" else data(3, 2, 6)
        container = fill(layer.StepModeContainer(False, nn.Linear(6, 5), nn.BatchNorm1d(5)))
        stateful = fill(layer.StepModeContainer(True, nn.Linear(6, 5), neuron.LIFNode(v_threshold=0.5)))
        for name, net in (("plain", container), ("stateful", stateful)):
            functional.set_step_mode(net, mode)
            y = net(x)
            (y * data(5, *y.shape)).sum().backward()
            out[f"{name}.{mode}"] = y.detach()
            out[f"{name}.{mode}.grad"] = torch.cat([p.grad.flatten() for _, p in sorted(net.named_parameters())])
    torch.manual_seed(3)
    drop = fill(layer.DropConnectLinear(6, 5, p=0.3, state_mode="s"))
    out["dropconnect"] = drop(data(3, 2, 6)).detach()
    conv, bn = fill(layer.Conv2d(2, 3, 3, bias=False)), fill(layer.BatchNorm2d(3)).eval()
    out["fused"] = functional.fuse_convbn2d(conv, bn)(data(2, 2, 2, 5, 5)).detach()
    swapped = nn.Sequential(neuron.IFNode(step_mode="m"))
    x_seq = data(1, STEPS, *SHAPE)
    out["first"] = swapped(x_seq)
    functional.reset_net(swapped)
    kept, swapped[0] = swapped[0], neuron.LIFNode(step_mode="m")
    swapped(x_seq)
    functional.reset_net(swapped)  # reaches the node that came later
    out["state_after_reset"] = torch.as_tensor(swapped[0].v)
    out["swapped"] = swapped(x_seq)
    out["kept"] = kept(x_seq)
    return out


def surrogates():
    from spikingjelly.activation_based import surrogate
    out = {}
    for name, args in (("PiecewiseLeakyReLU", ()), ("PiecewiseLeakyReLU", (0.7, 0.1)), ("LeakyKReLU", ()), ("ATan", ()),
                       ("LogTailedReLU", (0.3,)), ("S2NN", (3.0, 0.7)), ("QPseudoSpike", ()), ("SoftSign", ())):
        function, x = getattr(surrogate, name)(*args), torch.linspace(-1.9, 1.83, 41).requires_grad_()
        y = function(x)
        out[f"{name}.{len(args)}.y"] = y.detach()
        out[f"{name}.{len(args)}.grad"], = torch.autograd.grad((y * data(2, 41)).sum(), x)

    class Mine(surrogate.SurrogateFunctionBase):
        def __init__(self, alpha=1.5, spiking=True):
            super().__init__(alpha, spiking)

        @staticmethod
        def spiking_function(x, a):
            return surrogate.sigmoid.apply(x, a)

        @staticmethod
        def primitive_function(x, a):
            return (x * a).sigmoid()

    from spikingjelly.activation_based import neuron
    for name, function in (("mine", Mine(2.5)), ("mine_off", Mine(spiking=False))):
        node = neuron.LIFNode(surrogate_function=function, step_mode="m", store_v_seq=True)
        out.update({f"{name}.{key}": value for key, value in _run(node).items()})
    return out


def learning():
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based import learning as rules
    net = nn.Sequential(fill(layer.Linear(5, 4, bias=False)), neuron.IFNode(0.6))
    learner = rules.STDPLearner("s", net[0], net[1], 2.0, 3.0, lambda w: 0.4 * w, lambda w: -0.3 * w)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with torch.no_grad():
        for i in range(4):
            net((data(i, 3, 5) > 0.5).float())
    optimizer.zero_grad()
    learner.step(on_grad=True)
    optimizer.step()
    out = {"stdp": net[0].weight.detach().clone()}

    net = nn.Sequential(fill(layer.Linear(5, 4)), neuron.IFNode(0.6))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    w_ra = functional.fptt_online_training_init_w_ra(optimizer)
    functional.fptt_online_training(model=net, optimizer=optimizer, x_seq=data(1, 4, 3, 5), target_seq=data(2, 4, 3, 4),
                                    f_loss_t=nn.functional.mse_loss, alpha=0.3, w_ra=w_ra)
    out["fptt"] = net[0].weight.detach()
    out["spikes"] = (data(3, 2, 2) > 0.6).float()
    return out


SCENARIOS = [nodes, positional, other_neurons, overridden_equations, layers, surrogates, learning]
