"""HELM as a Hugging Face model: the files that travel with every exported checkpoint.

They need torch and transformers only; `helm_megatron.conversion` writes and reads such checkpoints.
"""
