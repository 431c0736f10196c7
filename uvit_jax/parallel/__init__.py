"""Meshes, shardings and attention: how a program is spread over devices."""
