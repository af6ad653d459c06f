"""The page for operators: live chords in a browser.

It needs ``chordguard[web]``. Nothing else of chordguard imports it, but the command `web`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ChordguardError

if TYPE_CHECKING:
    from celery import Celery
    from starlette.applications import Starlette

__all__ = ("WebMissing", "create_app", "django_urls")


class WebMissing(ChordguardError, ImportError):
    """The page needs packages that are not installed; the message says which."""

    @classmethod
    def of(cls, exc: ImportError) -> WebMissing:
        """Return the error for a package that cannot be imported."""
        if isinstance(exc, cls):
            return exc
        package = (exc.name or str(exc)).partition(".")[0]
        return cls(
            f'the page needs {package}, which is not installed: pip install "chordguard[web]"'
        )


def create_app(
    app: Celery,
    *,
    allow_actions: bool = False,
    token: str | None = None,
    look_needs_token: bool = False,
    hosts: tuple[str, ...] | None = None,
) -> Starlette:
    """Return the page as an ASGI application, to be served or mounted in another one.

    Arguments:
        app: A Celery app with the patches.
        allow_actions: Whether chords can be repaired, settled and revoked on it, by whom has the
            token. Otherwise it only shows them.
        token: The secret that acting asks for, at least 16 characters.
        look_needs_token: Whether looking asks for it, too. Names of tasks, errors and results are
            shown: where it is False, who may look is the matter of what it is mounted in.
        hosts: The names by which it may be called (the ``Host`` header); None: any.

    Raises:
        WebMissing: Starlette or Jinja2 is not installed.
        ValueError: The token is missing or too short.
    """
    try:
        from .application import make
    except ImportError as exc:
        raise WebMissing.of(exc) from exc
    return make(
        app,
        allow_actions=allow_actions,
        token=token,
        look_needs_token=look_needs_token,
        hosts=hosts,
    )


def django_urls(app: Celery, **options: Any) -> Any:
    """Return the page as what Django's ``path(..., include(...))`` takes.

    ::

        urlpatterns = [path("chords/", include(chordguard.web.django_urls(celery_app)))]

    Arguments:
        app: A Celery app with the patches.
        options: Those of :func:`create_app`. Protect the URL as others of your site: wrap
            ``include`` in your own login, or set ``look_needs_token``.
    """
    from .in_django import urls

    return urls(create_app(app, **options))
