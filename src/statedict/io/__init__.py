"""Bytes: where they are and how they move."""
