"""Lorentz geometry in pure torch: `lorentz` (space chart) and `reference` (ambient fp64 oracle)."""
