"""Samplers as float64 coefficient tables, run by one scan."""
