"""The centroid of each token's experts."""
