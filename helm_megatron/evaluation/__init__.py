"""Evaluation by lm-eval, of Megatron checkpoints and Hugging Face models."""
