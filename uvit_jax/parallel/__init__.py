"""Meshes, shardings, attention implementations and multi-process runs."""
