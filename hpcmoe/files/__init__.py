"""Every HDF5 layout, and where weights come from."""
