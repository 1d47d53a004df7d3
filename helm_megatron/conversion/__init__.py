"""Checkpoints between Megatron, Hugging Face and the authors' release."""
