"""Fixes of the Redis result backend."""
