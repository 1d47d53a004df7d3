"""Fused forms of the hot elementwise functions, each with its plain twin in `geometry`.

`norm2` (the squared norm that times are taken of), `time_term` (time weight and bias after a
matrix product), `gated` (the same with SwiGLU) and `residual`. Each is an autograd function that
saves its inputs and no products of them. CUDA tensors go to Triton where it is installed
(`triton_*`, imported on first use), all others to hand-ordered torch.
"""
