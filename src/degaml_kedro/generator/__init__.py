"""From unlabelled prompts to an adapter: prompt encoder, decoders, training."""
