"""Metrics of samples: distances between sets of images by encoders' features, with intervals.

A metric is named after its encoder; only the official Inception weights yield an FID.
"""
