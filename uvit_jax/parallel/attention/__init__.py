"""Implementations of scaled dot-product attention."""
