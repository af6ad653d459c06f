"""Fixes of chords that the counter of a key-value store counts."""
