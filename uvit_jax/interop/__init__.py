"""Weights from and for other programs. Nothing in a file is trusted: no pickle is ever executed."""
