"""Causal attention of the last tokens of a sequence to all of it, on the CPU."""
