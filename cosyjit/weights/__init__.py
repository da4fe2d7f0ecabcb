"""Reads the weights files that strangers wrote, in bounded time and memory, without torch but for casts."""
