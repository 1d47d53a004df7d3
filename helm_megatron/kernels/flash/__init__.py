"""Lorentz flash attention."""
