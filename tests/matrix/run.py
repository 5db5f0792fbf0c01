"""Runs a part of the tests on each release in the matrix: `make test-matrix`, or python tests/matrix/run.py NAME ...

Every release is installed alone (pip install --no-deps --target) into build/matrix and put before the environment's own
on the path; what it imports comes from the environment. The first tests say which release they found, so that no row
is the environment's by mistake.
"""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "matrix"


@dataclass(frozen=True)
class Row:
    """package==release, and what is run on it. slow: the tests marked slow, too."""

    package: str
    release: str
    tests: tuple[str, ...]
    slow: bool = True

    @property
    def name(self) -> str:
        return f"{self.package}-{self.release}"


_SNN = ("tests/matrix/test_matrix_snn.py", "tests/snntorch/test_neurons_exact.py",
        "tests/snntorch/test_retrofit_leaky.py", "tests/snntorch/test_synaptic.py",
        "tests/snntorch/test_neurons_contract.py")
ROWS = (
    Row("spikingjelly", "2.0.0", ("tests/matrix/test_matrix_sj.py", "tests/compat", "tests/sj/test_retrofit.py")),
    Row("spikingjelly", "0.0.0.0.14", ("tests/matrix/test_matrix_sj.py",)),
    Row("snntorch", "1.0.0", _SNN, slow=False),
    Row("snntorch", "0.9.4", _SNN, slow=False),
)


def installed(row: Row) -> Path:
    """The folder that holds this release and nothing else."""
    folder = BUILD / row.name
    if not (folder / row.package).is_dir():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder,
                        f"{row.package}=={row.release}"], check=True)
    return folder


def run(row: Row) -> bool:
    """Do its tests pass?"""
    print(f"== {row.name}", flush=True)
    folder = installed(row)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ask = (f"from importlib.metadata import version; import {row.package} as p; "
           f"print(version('{row.package}'), list(p.__path__)[0])")
    found = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True,
                           cwd=ROOT).stdout.split()[-2:]
    if found != [row.release, str(folder / row.package)]:
        raise SystemExit(f"{row.name}: found {found} instead")
    which = "not gpu" if row.slow else "not gpu and not slow"
    command = [sys.executable, "-m", "pytest", "-q", "-m", which, *row.tests]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode == 0


def main(names: list[str]) -> int:
    chosen = [row for row in ROWS if not names or row.name in names]
    if len(chosen) < len(names):
        raise SystemExit(f"{names}: allowed are {', '.join(row.name for row in ROWS)}")
    failed = [row.name for row in chosen if not run(row)]
    print(f"matrix: {len(chosen) - len(failed)} of {len(chosen)} pass", *(f"failed: {name}" for name in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
