"""Command lines: thin, each a module to run with `python -m experiments.NAME`."""

import sys

from uvit_jax import interrupts

if sys.argv[0] == "-m":  # Python looks for the module to run; its imports take seconds
    interrupts.end_at_once()
