"""Metrics of samples: distances between sets of images by encoders' features, with intervals.

Nothing here knows a model by name. A metric is named after its encoder; only the official Inception
weights make an FID.
"""
