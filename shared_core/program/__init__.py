"""`memext run`: somebody's program, unmodified, with our neurons in its models.

    memext run --method recompute train.py --epochs 3        # or: memext run -m package.module ...

_command.py     what is asked for, checked; and the run itself
_main.py        the program as `__main__`: its arguments, path, exit status and traceback are its own
_imports.py     a call back when the program has imported SpikingJelly or snnTorch
_children.py    processes that the program starts
_session.py     what happens in one process: neurons built, models called, steps taken
_apply.py       the method, when a model is called for the first time
_loops.py       loops over time in a module's forward, made visible (reverse, sltt);  _rewrite.py  how
_sequences.py   whole sequences, stepped through (reverse, sltt)
_record.py      what the first training step was given, and what its loss gave back
_probe.py       the same step on two copies of the model, native and ours: memory, time, gradients
_copies.py      copies that share their parameters with the model, and nothing else
_not_reset.py   which neuron still carries the graph of an earlier step
_summary.py     what is said at the end
"""
from ._command import METHODS, prepare

__all__ = ["METHODS", "prepare"]
