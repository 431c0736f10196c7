"""How good samples are: encoders of pictures, and distances between sets of their features.

Nothing here knows a model by name. A figure is named after the encoder that made it; only the
official Inception weights make an FID.
"""
