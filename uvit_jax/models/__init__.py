"""Networks: blocks, the backbone that stacks them, and presets of the published models."""
