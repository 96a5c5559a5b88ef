"""GGUF, the files of llama.cpp: `model.py` has the layout, `types.py` the types of tensors."""
