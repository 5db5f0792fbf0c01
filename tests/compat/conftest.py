"""Importing sj_memext.compat installs the old names, also where tests are only collected, in every process of a run.

Tests of other files must not meet them. Each file here installs them for its own tests.
"""
from sj_memext import compat

compat.uninstall()
