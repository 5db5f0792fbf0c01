"""Keeps what the scenarios return on an old release, for test_compat_values.py.

    pip download spikingjelly==0.0.0.0.12 --no-deps; pip install --no-deps --target OLD spikingjelly==0.0.0.0.12
    python tests/compat/make_golden.py OLD                  # the folder that holds that spikingjelly/
Needs numpy, torch, and what the old package imports (matplotlib, tqdm, torchvision). Written with torch 2.15 on a CPU.
"""
from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(folder: str) -> None:
    sys.path[:0] = [folder, str(HERE)]
    import numpy as np
    import spikingjelly
    import torch
    torch.set_num_threads(1)
    root = Path(spikingjelly.__path__[0])
    assert root.parent == Path(folder).resolve(), f"this is {root}, not the old release"
    module = importlib.import_module("legacy_scenarios_14" if (root / "activation_based").is_dir()
                                     else "legacy_scenarios_12")
    kept = {}
    for scenario in module.SCENARIOS:
        for name, value in scenario().items():
            array = np.array(json.dumps(value)) if isinstance(value, list) else value.detach().numpy()
            if array.dtype == np.float32 and np.isin(array, (0, 1)).all():
                array = array.astype(bool)  # spikes
            kept[f"{scenario.__name__}/{name}"] = array
    target = HERE / "golden" / f"sj_{module.RELEASE}.npz"
    np.savez_compressed(target, **kept)
    print(f"{target.name}: {len(kept)} arrays, {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1])
