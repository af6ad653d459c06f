"""Fixes of results and of what all result backends share."""
