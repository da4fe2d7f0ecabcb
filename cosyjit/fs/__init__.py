"""Local files: replaced whole, locked, hashed, and remembered by their identity."""
