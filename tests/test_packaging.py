"""An installed wheel has every package: an editable installation would not miss one."""
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for name in ("shared_core", "sj_memext", "snntorch_memext")
             for path in (ROOT / name).rglob("__init__.py")}
    assert listed == there
