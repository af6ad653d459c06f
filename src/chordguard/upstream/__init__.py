"""Celery as chordguard reads it: result backends, stored results, signatures, workers, apps."""
