"""GGUF, the files of llama.cpp: `model.py` has the layout, `tensor/ggml/types.py` the types of tensors."""
