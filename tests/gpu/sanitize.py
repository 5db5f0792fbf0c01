"""A small run of every GPU kernel under compute-sanitizer: memcheck (accesses out of bounds) and racecheck.

    python tests/gpu/sanitize.py

Sizes are odd, so that tails run; Torch's caching allocator is off, so that each tensor has bounds of its own.
Without a GPU, CuPy or compute-sanitizer it says so and ends with status 0.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

TOOLS = ("memcheck", "racecheck")


def small_run() -> None:
    import torch

    from shared_core import functional, surrogate
    from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF

    torch.manual_seed(1)
    ran = 0
    for d in (IF(0.7), LIF(0.7, None, tau=3.0), ParametricLIF(0.7), Leaky("subtract", False)):
        for steps, width, dtype in ((1, 1, torch.float32), (5, 33, torch.float16), (13, 65, torch.bfloat16),
                                    (33, 131, torch.float32), (70, 1001, torch.float64)):
            x = torch.randn(steps, width, device="cuda").to(dtype).requires_grad_()
            params = [torch.rand(width, device="cuda").requires_grad_() for _ in d.params]
            out = functional.multi_step(d, x, None, params, surrogate=surrogate.atan(alpha=2.0), record=True, bits=True,
                                        backend="cuda")
            (out.spikes.sum() + out.state[0].sum() + out.sequence[0].sum()).backward()
            ran += 2
    torch.cuda.synchronize()
    print(f"ran {ran} kernels")


def main() -> int:
    import torch

    from shared_core.backends import cuda

    reason = cuda.unavailable()
    tool = shutil.which("compute-sanitizer")
    if reason or not tool or not torch.cuda.is_available():
        print(f"sanitize.py: nothing run: {reason or 'compute-sanitizer is not on the path'}")
        return 0
    small_run()  # compiles first: the compiler would be slow under the sanitizer
    failed = 0
    for name in TOOLS:
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, __file__, "--run"]
        done = subprocess.run(command, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                              capture_output=True, text=True)
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        failed += done.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        small_run()
    else:
        sys.exit(main())
