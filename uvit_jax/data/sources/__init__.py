"""Data sources: random access to records, one file a kind."""
