"""Training: loop, step, optimizers, self-check, compilation."""
