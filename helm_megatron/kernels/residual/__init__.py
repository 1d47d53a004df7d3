"""The Lorentz residual."""
