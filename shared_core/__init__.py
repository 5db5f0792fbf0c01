"""The maths of spiking neurons, the kernels that run it, and what measures them. Knows no framework.

functional.py   the public maths                  dynamics.py     what each neuron computes, in plain Torch
surrogate.py    surrogate gradients               kernels/        the same, as C++ and CUDA (neuron.h)
memory.py       measure(), plan(), lif_memory()   registry.py     neurons by name, entry points
retrofit.py     how a built model is changed      chain/          multi-step: spikes as bits, layers rebuilt
temporal/       step by step: unroll()            sharing/        membranes shared between layers (EfficientLIF-Net)
reversible/     neurons, blocks and columns that can be run backwards (RevSNN, T-RevSNN)
hardware/       energy, latency and area of a trained network
program/        memext run: an unmodified program with our neurons
doctor/         explain(): what is wrong with a model's memory   checkpoint.py   whole modules run again
"""

__all__ = ["explain"]


def __getattr__(name: str):
    """explain, imported when it is asked for: importing this package imports no Torch."""
    if name == "explain":
        from .doctor import explain
        return explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
