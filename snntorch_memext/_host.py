"""Everything this adapter takes from snnTorch, and what it knows of snnTorch's inside, in one place."""
from __future__ import annotations

import inspect

import snntorch
from snntorch import Leaky, SpikingNeuron, Synaptic
from snntorch import surrogate as surrogates

__all__ = ["NEURON_CLASSES", "TESTED", "Leaky", "PicklableClosure", "SpikingNeuron", "Synaptic", "surrogates",
           "why_untested"]

# What the framework calls a neuron: its package of neurons holds parts of them too, and LeakyParallel is one that is no
# SpikingNeuron.
NEURON_CLASSES = (SpikingNeuron, *(cls for cls in vars(snntorch).values() if inspect.isclass(cls)
                                   and cls.__module__.startswith(SpikingNeuron.__module__.rpartition(".")[0])
                                   and not issubclass(cls, SpikingNeuron)))

TESTED = ("0.9.4", "1.0.0")  # the releases of snnTorch whose equations the tests compared bit by bit


def why_untested() -> str | None:
    """None if the installed snnTorch is one the tests ran with, else a sentence that says so."""
    installed = snntorch.__version__
    if installed.partition("+")[0] in TESTED:
        return None
    return (f"snnTorch {installed} is installed; this adapter was tested with {' and '.join(TESTED)}. "
            "Compare one training step with your own network before relying on it.")


class PicklableClosure:
    """A closure of snntorch.surrogate, made picklable: it travels as the factory's name and its arguments.

    snnTorch returns `inner`, a function inside the factory, which pickle refuses. Here it is the value of `closure`,
    the very same object after a deepcopy, an equal new one after unpickling.
    """

    def __init__(self, closure):
        self.closure = closure

    @classmethod
    def wrap(cls, spike_grad):
        """`spike_grad` wrapped if it is one of snnTorch's closures, else as it is."""
        return spike_grad if _recipe(spike_grad) is None else cls(spike_grad)

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _rebuild, _recipe(self.closure)


def _recipe(spike_grad) -> tuple[str, dict] | None:
    """(factory, arguments) that make an equal closure; None if it is not one of snnTorch's."""
    if not inspect.isfunction(spike_grad) or spike_grad.__module__ != surrogates.__name__:
        return None
    name, _, rest = spike_grad.__qualname__.partition(".")
    factory = getattr(surrogates, name, None)
    if rest != "<locals>.inner" or factory is None:
        return None
    wanted = list(inspect.signature(factory).parameters)
    held = inspect.getclosurevars(spike_grad).nonlocals
    if name == "custom_surrogate":  # the one factory that renames its argument
        held = {wanted[0]: held["func"]}
    return (name, held) if sorted(held) == sorted(wanted) else None


def _rebuild(name: str, arguments: dict) -> PicklableClosure:
    return PicklableClosure(getattr(surrogates, name)(**arguments))
