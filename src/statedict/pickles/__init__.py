"""The data subset of pickle, read and written without running anything."""
