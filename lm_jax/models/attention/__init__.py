"""Attention: the layer, its kernels, context parallelism, positions."""
