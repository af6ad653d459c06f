"""Fixes of celery.canvas: how a chord is built and started."""
