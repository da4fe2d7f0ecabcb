"""Reads the configurations that strangers wrote, in bounded time and memory, without running anything in them."""
