"""Token layouts: what stands in the sequence, and how it gets in and out."""
