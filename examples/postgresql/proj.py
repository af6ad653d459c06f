"""A Celery app whose chords tolerate failed header tasks; PostgreSQL stores the results."""

from celery import Celery

from chordguard import install_patches

app = Celery(
    "proj",
    broker="redis://localhost/0",
    backend="db+postgresql+psycopg2://postgres@localhost/proj",
)
app.conf.chord_propagate_errors = False  # a failed header task becomes a result
install_patches(app)


@app.task
def divide(a, b):
    return a / b


@app.task
def collect(results):
    return results
