"""ONNX: the tensors of a model."""
