"""LoRA weights as data: the shape of an adapter, and the PEFT folders they live in."""
