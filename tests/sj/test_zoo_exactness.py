"""SpikingJelly's own model zoo, unmodified: three training steps equal native's, whatever is kept or recomputed."""
from functools import lru_cache

import pytest
import torch
from training_steps import METHOD_PARAMS, check, classify, native_run, neurons, one_thread
from zoo import ZOO, assert_awake

__all__ = ["one_thread"]  # a fixture

MODELS = [pytest.param(name, marks=pytest.mark.slow if model.slow else ()) for name, model in ZOO.items()]


@lru_cache(maxsize=1)  # the methods of a model run one after the other
def native(name):
    """(net, awake, and its three training steps)."""
    net, x = ZOO[name].make()
    with torch.random.fork_rng():
        assert_awake(net, x)
    return net, native_run(net, x, loss=classify, grad_x=ZOO[name].grad_x)


@pytest.mark.parametrize("method", METHOD_PARAMS)
@pytest.mark.parametrize("name", MODELS)
def test_three_training_steps_equal_native(name, method):
    net, record = native(name)
    assert all(isinstance(v, torch.Tensor) for v in record[0].states) and len(neurons(net)) > 3
    check(net, method, record, loss=classify, grad_x=ZOO[name].grad_x)
