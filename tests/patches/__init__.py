"""One file per fix: Celery alone shows the defect, patched it is gone."""
