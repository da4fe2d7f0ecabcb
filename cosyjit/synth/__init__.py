"""Writes model directories with random weights, for tests, demonstrations and measurements."""
