"""Command lines: thin, each a module to run with `python -m experiments.NAME`."""
