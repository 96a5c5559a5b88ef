"""Orbax: checkpoint directories of JAX; `tree.py` has the layout."""
