"""The squared norm of points, from which their times are taken."""
