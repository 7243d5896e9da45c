"""Decoders: from the encoded prompts of one condition to the tokens of an adapter."""
