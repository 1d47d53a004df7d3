"""What follows the matrix product of a Lorentz linear: time weight, bias, SwiGLU."""
