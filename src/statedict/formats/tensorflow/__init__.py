"""TensorFlow: `bundle.py` has the layout of a checkpoint, `table.py` that of its index."""
