"""Combine states: one lazy tree of several."""
