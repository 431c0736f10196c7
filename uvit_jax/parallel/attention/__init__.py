"""Attention by name: XLA, blocked, splash, cuDNN, context parallel."""
