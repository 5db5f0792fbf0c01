"""Max pooling of real values on the CPU: our kernels against Torch's, values and gradients bit for bit."""
import pytest
import torch
import torch.nn.functional as F

from shared_core.chain.pool import PoolOptions, max_pool2d

SIZES = [(28, 28), (7, 9), (2, 2), (3, 2), (5, 33), (16, 15)]


def values(height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """With ties, zeros of both signs, infinities and NaNs, also several in one window."""
    x = (4 * torch.randn(3, 5, height, width, dtype=dtype)).round() / 4
    x[0, 0, 0, 0] = x[1, 2, -1, -1] = x[2, 3, :2, :2] = float("nan")
    x[0, 1, :2, :2] = -float("inf")
    x[1, 1], x[1, 3] = 0.0, -0.0
    x[2, 0, ::2] = -0.0
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_as_torch(height, width, kernel, padding, dtype):
    torch.manual_seed(height * width)
    options = PoolOptions((kernel, kernel), (2, 2), (padding, padding), (1, 1), False)
    ours = values(height, width, dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    y, wanted = max_pool2d(ours, options, chains=False), F.max_pool2d(theirs, kernel, 2, padding)
    assert type(y.grad_fn).__name__ == "_MaxPoolBackward"  # else nothing is tested
    assert torch.equal(torch.nan_to_num(y), torch.nan_to_num(wanted)) and torch.equal(y.isnan(), wanted.isnan())
    grad = torch.randn_like(wanted)
    y.backward(grad)
    wanted.backward(grad)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("options", [PoolOptions((4, 4), (4, 4), (0, 0), (1, 1), False),
                                     PoolOptions((2, 2), (2, 2), (0, 0), (1, 1), True),
                                     PoolOptions((3, 3), (2, 2), (0, 0), (1, 1), False),
                                     PoolOptions((2, 2), (2, 2), (0, 0), (2, 2), False)])
def test_other_windows_are_torchs(options):
    x = values(9, 9, torch.float32).requires_grad_()
    y = max_pool2d(x, options, chains=False)
    assert type(y.grad_fn).__name__ == "MaxPool2DWithIndicesBackward0"
