"""Ablations: runs that differ in one thing each, with several seeds, measured alike and compared.

variants defines the runs, measurement measures them, run_records stores the measurements and makes
tables of them, plots draws curves and sample sheets. `experiments.ablate` is the command.
"""
