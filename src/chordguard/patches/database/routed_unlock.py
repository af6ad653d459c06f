"""`celery.chord_unlock` is routed away or dropped, and the chord is never looked at.

Up to 5.6 `Backend.fallback_chord_unlock` hands on the queue and the priority of the body, but not
the exchange, the routing key and the headers by which a headers or topic exchange routes it, and
the type of the exchange is lost with each retry. Here it is sent as from 5.7 on.
https://github.com/celery/celery/issues/4337 https://github.com/celery/celery/issues/9742
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import NotRegistered

from ...engine.patch import SQL, Defect, Patch
from ...engine.versions import celery_5_7
from ...lifecycle.polling import EXCHANGE_TYPE

patch = Patch(
    "routed_unlock",
    Defect(
        "C5",
        "SQL: chord_unlock misses the exchange that the body is sent to, the chord hangs",
        until=celery_5_7,
    ),
    backends=(SQL,),
)

#: The keyword argument that takes the options of a poller to where it is sent.
ROUTING = "chordguard_routing"


@patch.wraps("celery.backends.base", "Backend.fallback_chord_unlock", takes={"body": 1})
def fallback_chord_unlock(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, body: Any) -> Any:
    routing = _routing_in(body.options, "exchange", "exchange_type", "routing_key", "headers")
    exchange_type = routing.get("exchange_type") or _type_of_exchange(backend.app, body)
    if exchange_type:
        routing["exchange_type"] = kwargs[EXCHANGE_TYPE] = exchange_type
    return wrapped(*args, **kwargs, **{ROUTING: routing})


@patch.wraps_task("celery.chord_unlock", "apply_async")
def send_unlock(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    given = args[1] if len(args) > 1 else kwargs.get("kwargs")
    routing = given.pop(ROUTING, {}) if given else {}
    return wrapped(*args, **{**kwargs, **routing})


@patch.wraps_task("celery.chord_unlock", "signature_from_request")
def retry_unlock(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    signature = wrapped(*args, **kwargs)
    exchange_type = (signature.kwargs or {}).get(EXCHANGE_TYPE)
    if exchange_type:
        signature.options.setdefault("exchange_type", exchange_type)
    if not signature.options.get("headers") and len(signature.args or ()) > 1:
        # Up to 5.2 a request forgets the headers of its message.
        _, body = signature.args[:2]
        signature.options.update(_routing_in(body.get("options") or {}, "headers"))
    return signature


def _routing_in(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    stamps = options.get("stamped_headers") or ()
    return {
        name: options[name]
        for name in names
        if name not in stamps and options.get(name) is not None
    }


def _type_of_exchange(app: Any, body: Any) -> str | None:
    """Return the type of the exchange of the queue that the body goes to."""
    try:
        queue = body.options.get("queue") or getattr(body.type, "queue", None)
    except NotRegistered:
        queue = body.options.get("queue")
    try:
        queue = queue or app.amqp.router.route({}, body.name)["queue"]
        queue = app.amqp.queues[queue] if isinstance(queue, str) else queue
        exchange_type: str = queue.exchange.type
    except (AttributeError, KeyError):
        return None
    return exchange_type
