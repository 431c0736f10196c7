"""From a model to samples: conditions, guidance, the sampler, decoding."""
