"""Runs a module as `python -m` does, after seeding: seeded.py MODULE [arguments]. The frameworks' examples do not."""
import runpy
import sys

import torch

torch.manual_seed(1)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
