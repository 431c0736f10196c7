"""Frozen networks: text and image encoders, with the weights of their authors."""
