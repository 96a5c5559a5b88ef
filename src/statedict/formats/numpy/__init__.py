"""NumPy's files: `npy.py` has the layout of one array, `npz.py` that of an archive of several."""
