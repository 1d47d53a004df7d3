"""Checkpoints: loading into other layouts."""
