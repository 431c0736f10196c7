"""Published and unified models as plain config dicts, without importing JAX."""
