"""Fixes of the database result backend and of the task that polls its chords."""
