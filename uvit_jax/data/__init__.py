"""Pictures, labels and captions as numpy batches: `pipeline.dataset` and `pipeline.batches`."""
