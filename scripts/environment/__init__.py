"""The environments this package runs in on a machine without a GPU."""
