"""Trees of tensors and values: the StateDict, its paths, its optimizers."""
