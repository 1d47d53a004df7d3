"""Fused forms of the hot functions, each with its plain twin in `geometry`, `layers` or `moe`.

`norm2` (the squared norm that times are taken of), `time_term` (time weight and bias after a
matrix product), `gated` (the same with SwiGLU), `residual` and `residual_norm` (with the norm that
reads it, in one pass), beside those of attention and of the mixture of experts. Each is an autograd
function that saves its inputs and a few numbers a token. CUDA tensors go to Triton where it works
(`triton_*`, imported on first use), all others to hand-ordered torch.
"""
