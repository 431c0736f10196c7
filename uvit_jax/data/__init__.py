"""Images, labels and captions as numpy batches: `pipeline.dataset` and `batches.batches`."""
