"""A step of Riemannian Adam on rows of points."""
