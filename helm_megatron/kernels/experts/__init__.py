"""All experts of a rank as one function."""
