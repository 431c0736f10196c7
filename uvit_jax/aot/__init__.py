"""Ahead-of-time compilation without the hardware: memory, communication and roofline bounds."""
