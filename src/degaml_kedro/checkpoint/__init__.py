"""The folders in which a trained generator with its policy, and an adaptation, are shared."""
