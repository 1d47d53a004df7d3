"""Fused versions of hot functions, each with a plain twin elsewhere."""
