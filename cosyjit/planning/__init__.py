"""Which artifacts are wanted, and which of them the store already has."""
