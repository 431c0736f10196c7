"""Ablations: many small runs that differ in one thing each, measured alike and compared.

plan.py says which runs there are, measure.py what is measured of each, results.py keeps the numbers
and makes tables of them, figures.py curves and sheets. `experiments.ablate` is the command.
"""
