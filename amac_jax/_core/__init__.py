"""The private foundations of the library: everything in here may change."""
