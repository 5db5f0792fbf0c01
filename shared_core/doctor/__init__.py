"""What is wrong with a spiking network's memory, and what to do: explain(model, sample), and `memext explain`.

_explain.py   explain(): watches a forward pass, leaves the model as it was; Explanation, what it returns
_watch.py     what every module was called with, as it runs
_hand.py      neurons that are written by hand: found by what they emit, or carry
_graph.py     what a graph reaches, and who keeps it alive
_rules.py     what was seen -> findings: what is wrong, and what to do
_expect.py    the peak of a training step under each method, by the planner
_text.py      an Explanation for a reader
_script.py    the same for a program: its own first two training steps are watched
command.py    `memext explain`
"""
from ._explain import Explanation, Finding, Neuron, explain

__all__ = ["Explanation", "Finding", "Neuron", "explain"]
