"""Heads with their times beside them for any dot-product kernel, and its sums as points again."""
