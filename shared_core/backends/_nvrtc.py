"""NVRTC, NVIDIA's run-time compiler, through ctypes. Needs no GPU: the tests compile every kernel with it.

Torch's CUDA builds bring it (the `nvidia` packages, or Torch's own lib folder). CuPy's RawModule(code=...) is not used
to compile: it adds -ftz=true, which turns subnormal potentials and float16 inputs into zeros, and spikes flip.
"""
from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import re
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .._build import KERNELS
from ..errors import MemextError

# --fmad=false: the frameworks round after every operation. Divisions and square roots are IEEE by default.
FLAGS = ("-std=c++17", "--fmad=false", "--ftz=false", "--ptxas-options=-v", f"-I{KERNELS}")


@dataclass(frozen=True)
class Compiled:
    """image: cubin, or PTX text where the device is newer than the compiler.  log: the compiler's report."""

    image: bytes
    is_ptx: bool
    log: str

    @property
    def registers(self) -> int:
        return self._number(r"Used (\d+) registers")

    @property
    def spilled_bytes(self) -> int:
        return self._number(r"(\d+) bytes spill stores") + self._number(r"(\d+) bytes spill loads")

    @property
    def stack_bytes(self) -> int:
        return self._number(r"(\d+) bytes stack frame")

    def _number(self, pattern: str) -> int:
        found = re.findall(pattern, self.log)
        if not found:
            raise ValueError(f"the compiler's report has no {pattern!r}:\n{self.log}")
        return max(map(int, found))


def _candidates() -> list[str]:
    """NVRTC library files, the one that belongs to the installed Torch first."""
    folders = []
    for package, below in (("nvidia", ("cu*/lib", "cuda_nvrtc/lib")), ("torch", ("lib",))):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            folders += [os.path.join(root, b) for b in below]
    for name in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(name):
            folders += [os.path.join(os.environ[name], lib) for lib in ("lib64", "lib")]
    folders.append("/usr/local/cuda/lib64")
    found = [path for folder in folders for path in sorted(glob.glob(os.path.join(folder, "libnvrtc[.-]*so*")))]
    return [path for path in found if "builtins" not in path and ".alt." not in path]


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL | None, str]:
    """(NVRTC, its path), or (None, why there is none)."""
    problem = "no NVRTC library found (Torch's CUDA builds bring one; else set CUDA_PATH)"
    for path in _candidates():
        try:
            nvrtc = ctypes.CDLL(path)
        except OSError as error:
            problem = f"{path} does not load: {error}"
            continue
        nvrtc.nvrtcGetErrorString.restype = c_char_p
        return nvrtc, path
    return None, problem


def unavailable() -> str | None:
    nvrtc, reason = library()
    return None if nvrtc is not None else reason


@lru_cache(maxsize=1)
def version() -> tuple[int, int]:
    major, minor = c_int(), c_int()
    _check(library()[0].nvrtcVersion(byref(major), byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@lru_cache(maxsize=1)
def architectures() -> tuple[int, ...]:
    """Compute capabilities this compiler knows, as numbers: 90 is sm_90."""
    nvrtc, count = library()[0], c_int()
    _check(nvrtc.nvrtcGetNumSupportedArchs(byref(count)), "nvrtcGetNumSupportedArchs")
    found = (c_int * count.value)()
    _check(nvrtc.nvrtcGetSupportedArchs(found), "nvrtcGetSupportedArchs")
    return tuple(sorted(found))


def compile(source: str, options: tuple[str, ...], capability: int, name: str = "neuron.cu") -> Compiled:
    """Compile `source` for one compute capability (90 is sm_90), with FLAGS and `options`.

    A device newer than the compiler gets PTX, which its driver translates. Raises MemextError with the compiler's log.
    """
    nvrtc, where = library()
    if nvrtc is None:
        raise MemextError(f"cuda backend: {where}")
    is_ptx = capability > max(architectures())
    target = f"--gpu-architecture={f'compute_{max(architectures())}' if is_ptx else f'sm_{capability}'}"
    arguments = [option.encode() for option in (target, *FLAGS, *options)]
    program = c_void_p()
    code = nvrtc.nvrtcCreateProgram(byref(program), source.encode(), name.encode(), 0, None, None)
    _check(code, "nvrtcCreateProgram")
    try:
        code = nvrtc.nvrtcCompileProgram(program, len(arguments), (c_char_p * len(arguments))(*arguments))
        log = _fetch(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if code:
            raise MemextError(f"cuda backend: {Path(where).name} refuses {name} for sm_{capability}, options "
                              f"{' '.join(options)}; this is a bug in the kernels, please report it:\n{log[:4000]}")
        image = _fetch(program, "PTX" if is_ptx else "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))
    return Compiled(image, is_ptx, log)


def _fetch(program: c_void_p, what: str) -> bytes:
    nvrtc, size = library()[0], c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, byref(size)), f"nvrtcGet{what}Size")
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, data), f"nvrtcGet{what}")
    return data.raw[:size.value]


def _check(code: int, what: str) -> None:
    if code:
        raise MemextError(f"cuda backend: {what} failed: {library()[0].nvrtcGetErrorString(code).decode()}")
