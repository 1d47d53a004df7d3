"""The Lorentz residual and the norm that reads it, in one pass over the stream."""
