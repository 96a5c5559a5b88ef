"""Quantized weights: how libraries store them, and what a checkpoint has of it."""
