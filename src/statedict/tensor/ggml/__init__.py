"""The types of tensors in ggml, which GGUF files have, and how numbers lie in their blocks."""

BIG_ENDIAN = "gguf.big_endian"
"""The key of a tree's `metadata` that says in which byte order a big-endian file has BF16 and blocks."""
