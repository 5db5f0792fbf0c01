"""Builds the CPU kernels while the package is installed; everything else is in pyproject.toml.

Without a C++ compiler the package installs all the same and runs on the Torch path, which it says once when used.
"""
import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def load_build_script():
    """shared_core/_build.py by path: importing shared_core would import Torch, which a build environment lacks."""
    spec = importlib.util.spec_from_file_location("memext_build", HERE / "shared_core" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        script = load_build_script()
        root = HERE if self.editable_mode else Path(self.build_lib)
        try:
            for path in script.build(root / "shared_core" / "_lib"):
                print(f"built {path.name}")
        except script.BuildError as problem:
            print(f"memext: installing WITHOUT the compiled CPU kernels: {problem}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """The libraries are of this platform but of no Python version: py3-none-<platform>."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(distclass=BinaryDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
