"""Random canvases, compared with a plain evaluation of what Celery documents."""
