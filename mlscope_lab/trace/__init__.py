"""The run as an xarray DataTree: its vocabulary, how it is built, checked and read."""
