"""Calls in processes of their own, and what memory, limits and signals do to them."""
