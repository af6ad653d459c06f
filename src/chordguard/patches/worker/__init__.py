"""Fixes of what a worker does around a task."""
