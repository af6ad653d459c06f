"""Whole applications as a user would run them."""
