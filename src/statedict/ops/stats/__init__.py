"""Figures of tensors, and what deserves a look."""
