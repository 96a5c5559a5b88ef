"""The types of tensors in ggml, which GGUF files have, and how numbers lie in their blocks."""
