"""What chordguard costs and saves, against stock Celery in the same run."""
