"""MiCE: a mixture of experts in which every expert has its own curvature."""
