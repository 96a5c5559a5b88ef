"""HDF5: Keras's files and others, by h5py."""
