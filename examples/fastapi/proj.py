"""A Celery app whose chords tolerate failed header tasks; Redis is broker and result backend."""

from celery import Celery

from chordguard import install_patches

app = Celery("proj", broker="redis://localhost/0", backend="redis://localhost/1")
app.conf.chord_propagate_errors = False  # a failed header task becomes a result
install_patches(app)


@app.task
def divide(a, b):
    return a / b


@app.task
def collect(results):
    return results
