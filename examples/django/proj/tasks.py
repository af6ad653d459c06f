"""The tasks of the chord."""

from celery import shared_task


@shared_task
def divide(a, b):
    return a / b


@shared_task
def collect(results):
    return results
