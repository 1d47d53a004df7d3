"""Fused forms of the hot functions, a room for each operation.

A room has, where they exist:

- `op`: the function that layers call, with its autograd function. It saves its inputs and a few
  numbers a token, and asks `dispatch` which of the following computes it.
- `plain`: the twin in plain torch that defines the result; tests compare outputs and gradients with
  it. Of `residual` and `norm2` that is geometry: `residual` and `time` of `geometry.lorentz`. Of
  `lower_right` it is torch's own attention.
- `cpu`: torch operations ordered by hand (of `points`, C). They run on CPUs, and for what Triton
  does not take: fp64, or a machine without Triton.
- `triton`: kernels for CUDA. Imported on first use, since they need Triton.

`common` has what Triton kernels of several rooms share.

Names are the same in all rooms:

- `d_x` is the gradient of the loss by x, and has x's shape; a backward pass is given `d_out`, or
  `d_` and the name of that output. `y_by_x` is the derivative of a number y by a number x.
- `x_s` and `x_t` are space coordinates and time of a point x. `c` is the curvature parameter of the
  points at hand, `c_x` that of x where it has its own, `c_e` an expert's.
- `forward` returns the outputs and then what `backward` needs beside the inputs. `backward` takes
  gradients of outputs, then inputs, then that. `needed` says which inputs need a gradient.
- A function that ends in `_` changes its first argument.
- Arguments of a Triton kernel are pointers to tensors of these names, what it loads from them has
  the name of the number in its formula (`o`, `d_o`), and capitals are constants to the compiler.
"""
