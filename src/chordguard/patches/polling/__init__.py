"""Fixes of chords that `celery.chord_unlock` polls, on SQL and elsewhere."""
