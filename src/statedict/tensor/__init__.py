"""Tensors: dtype, shape, and where the bytes are."""
