"""Ahead-of-time compilation for machines that are not at hand, and its accounting."""
