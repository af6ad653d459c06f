"""What applications put in place of functions of Celery; see `chordguard.upstream.hooks`.

A module of this package is named in the setting ``imports`` of a worker, a backend in its
``result_backend``.
"""
