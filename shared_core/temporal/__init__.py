"""Stepping through time with little memory: the module is called once a step, and its past is not kept but rebuilt.

    out = unroll(net, x_seq, method="reverse")      # [T, ...], differentiable; net holds its state inside

_unroll.py      unroll: the public function, its arguments and their checks
_unrolled.py    the autograd node: forward without a graph, backward step by step
_program.py     a step function with everything it reads made explicit: parameters, hidden states, buffers
_captured.py    what a Python function closes over
../_tape.py     spikes kept as bits, and given again when a step is rebuilt
_merged.py      several steps at once
_hosts.py       what must be known of a framework; an adapter registers one Host
_online.py      training with the gradient of one step at a time (SLTT, SLTT-K)
"""
from ._hosts import Host, register
from ._online import online_train_step
from ._unroll import METHODS, unroll

__all__ = ["METHODS", "Host", "online_train_step", "register", "unroll"]
