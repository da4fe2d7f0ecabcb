"""The tier `make versions`: torch, Python and all dependencies from the lowest supported releases to the newest."""
