"""Diffusion as pure functions over pytrees of segments; no model is known here by name."""
