"""Does a parallel layout compute the same model as one process? Loss, gradients, training."""
