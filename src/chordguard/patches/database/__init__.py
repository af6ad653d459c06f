"""Fixes of the database result backend."""
