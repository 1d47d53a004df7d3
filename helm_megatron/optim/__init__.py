"""Optimizers for parameters that live on the hyperboloid."""
