"""The maths of spiking neurons, the kernels that run it, and what measures them. Knows no framework.

functional.py   the public maths            dynamics.py     what each neuron computes, in plain Torch
surrogate.py    surrogate gradients         kernels/        the same, as C++ and CUDA (neuron.h)
memory.py       measure()                   registry.py     neurons by name, entry points
"""
