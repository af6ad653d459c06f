"""The catalogue of canvases, run over Celery version and result backend."""
