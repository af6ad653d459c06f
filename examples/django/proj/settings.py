"""Settings of a small Django project."""

from pathlib import Path

BASE_DIR = Path(__file__).parents[1]
SECRET_KEY = "an example"  # noqa: S105
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "proj.urls"
USE_TZ = True

INSTALLED_APPS = ["django_celery_results", "chordguard.django"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        "OPTIONS": {"timeout": 20},
    }
}

CELERY_BROKER_URL = "redis://localhost/0"
CELERY_RESULT_BACKEND = "django-db"
CELERY_CHORD_PROPAGATE_ERRORS = False
