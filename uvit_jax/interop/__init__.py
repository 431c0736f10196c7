"""Weights of other programs, in and out. Files are untrusted: no pickle is ever executed."""
