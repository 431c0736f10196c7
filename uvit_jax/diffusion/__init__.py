"""Diffusion as pure functions over pytrees of segments, independent of the model."""
