"""Reads the configurations that strangers wrote, in bounded time and memory, and runs nothing of them."""
