"""The frozen base model: loading it, scoring answers with it, fine-tuning LoRA adapters on it."""
