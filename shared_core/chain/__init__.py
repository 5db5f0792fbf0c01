"""Exact memory saving in multi-step mode: chains (conv | linear) -> norm -> neuron that keep bits and rebuild the rest.

    linear.py, norm.py, pool.py, neuron.py   one autograd function each; its equation, what it keeps, how it is rebuilt
    _links.py                                how a node finds the one that made its input
    stamps.py                                where spikes are known to be spikes
    _ownership.py                            when a gradient may be overwritten
    policy.py                                what is run again and what is kept
    modules.py, method.py                    torch.nn's layers as ours; retrofit's "compress" and "recompute"
"""
