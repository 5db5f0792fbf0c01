"""`make bench`: every CPU benchmark, one after the other. Results go to benchmarks/results/."""
from __future__ import annotations

import os
import subprocess
import sys

REUSE = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=8589934592"  # keep and reuse large blocks
RUNS = (("neurons_cpu", (), {}), ("neurons_cpu", ("--quick",), {"GLIBC_TUNABLES": REUSE}), ("saved_bytes", (), {}),
        ("training_step_cpu", (), {}), ("memory_cpu", (), {}), ("plan_cpu", (), {}),
        ("unroll_cpu", (), {}), ("sharing_cpu", (), {}), ("reversible_depth_cpu", (), {}),
        ("reversible_neuron_cpu", (), {}), ("zoo_cpu", (), {}))

if __name__ == "__main__":
    for name, options, environment in RUNS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True,
                       env={**os.environ, **environment})
