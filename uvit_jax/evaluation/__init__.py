"""How good samples are: encoders of pictures, distances between sets of their features, and whether
subjects are kept, with intervals over subjects and a page that shows them.

Nothing here knows a model by name. A figure is named after the encoder that made it; only the
official Inception weights make an FID.
"""
