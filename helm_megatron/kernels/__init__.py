"""Fused versions of the hot functions; each has its plain twin in geometry/ or layers/."""
