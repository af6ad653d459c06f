"""How a chord ends: its body is published with the results, or it fails.

Every chord ends through :class:`Ending`: one that was counted, one that is polled, and one that is
settled because its members are lost, or take too long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from celery import states
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.utils.log import get_logger
from kombu import serialization
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.encoding import safe_repr

from .. import signals
from ..errors import OUTSIDE
from ..failures import LONGEST, cut
from ..ledger import claims
from ..ledger.checked import ChordUnreadable
from ..ledger.model import Claim, Ledger
from ..ledger.packing import Header, leaf_ids
from ..ledger.tallies import End
from ..log import is_reported, warn_once, warn_once_of
from ..policy import Policy
from ..upstream import hooks
from ..upstream.backends import capabilities, is_django
from ..upstream.results import Results
from .errbacks import with_errbacks_once
from .failing import fail
from .joining import caused_by, join
from .settlement import Settlement

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Ending", "end", "end_from_part")

logger = logging.getLogger("chordguard")

NOT_STORED = "Chord %s: the results of %s are not stored yet"
CLAIM_LOST = "Lost the claim on chord %s to another worker; not publishing its body"


@dataclass(frozen=True)
class Ending:
    """All that it takes to end one chord, whichever way it was found to be complete.

    Attributes:
        app: The app whose worker ends the chord.
        group_id: The id of its header.
        body: The frozen signature of its body, or the same as data.
        policy: Its error policy.
        header: The members' ids, nested as the header is; empty where they were not read.
        results: The members' stored results by id; a member without one is lost.
        started: When the chord started (Unix time); None where that is not known.
        settlement: Why it ends before its members are done; None: they are.
    """

    app: Celery
    group_id: str
    body: Any
    policy: Policy
    header: Header = ()
    results: Results = field(default_factory=Results)
    started: float | None = None
    settlement: Settlement | None = None

    def publish(self) -> End:
        """Publish the body with the results, or fail the chord where its policy says so.

        Returns:
            How the chord ended.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached. The caller decides
                whether to try again, or to :meth:`fail` the chord.
        """
        body = maybe_signature(self.body, app=self.app)
        try:
            gathered = self._joined()
            _publish(self.app, with_errbacks_once(self.app, body), gathered)
        except EncodeError as exc:
            sendable = self._with_unsendable_as_failed(body)
            if sendable.failed > self.failed:
                return sendable.publish()
            return self.fail(exc)
        except (OperationalError, *OUTSIDE):
            raise
        except Exception as exc:  # noqa: BLE001 - the chord fails with it
            return self.fail(exc)
        if self.failed:
            counts = (self.failed, len(self._ids))
            logger.info("Chord %s: tolerated %d failed header tasks of %d", self.group_id, *counts)
        return self._report(signals.TOLERATED if self.failed else signals.SUCCEEDED)

    def publish_or_fail(self) -> End:
        """Publish the body; fail the chord where the broker cannot be reached, too.

        For whom nobody tries again. It returns how the chord ended.
        """
        try:
            return self.publish()
        except OperationalError as exc:
            return self.fail(exc)

    def fail(self, exc: BaseException) -> End:
        """Fail the chord for good: log it as Celery does, and settle what waits for it.

        Arguments:
            exc: Why. The chord fails with a ChordError: this one, or one that it causes.

        Returns:
            How the chord ended.
        """
        error = exc
        if not isinstance(exc, ChordError):
            text = cut(safe_repr(exc))  # type: ignore[no-untyped-call]
            error = caused_by(exc, f"Callback error: {text}")
        self._log(error)
        backend = self.app.backend
        body = maybe_signature(self.body, app=self.app)
        if hooks.fails_itself(backend):
            backend.chord_error_from_stack(body, error)
        else:
            fail(backend, body, error)
        return self._report(signals.FAILED)

    @cached_property
    def failed(self) -> int:
        """How many members failed or were lost."""
        results = self.results
        if results.have_succeeded(leaf_ids(self.header)):
            return 0
        return sum(id_ not in results or results[id_].failed for id_ in self._ids)

    @cached_property
    def _ids(self) -> set[str]:
        return set(leaf_ids(self.header))

    def _joined(self) -> list[Any]:
        why = self.settlement
        settled = None if why is None else why.sentence(self.group_id)
        return join(self.app.backend, self.header, self.results, self.policy, settled=settled)

    def _with_unsendable_as_failed(self, body: Any) -> Ending:
        """Return the ending with those results as failed that a message cannot carry.

        The result store may take what the serializer of tasks does not.
        """
        serializer = body.options.get("serializer") or self.app.conf.task_serializer
        results = Results(self.results.values())
        for task_id in self._ids & self.results.keys():
            result = self.results[task_id]
            if result.failed:
                continue
            try:
                serialization.dumps(result.value, serializer)  # type: ignore[no-untyped-call]
            except EncodeError as exc:
                text = f"the result of {task_id} cannot be sent as {serializer}: {exc}"
                results.add(task_id, states.FAILURE, EncodeError(text))
        return replace(self, results=results)

    def _log(self, error: BaseException) -> None:
        """Log the failure as Celery words it: alerts look for its logger, level and words."""
        raised = error
        # Celery's `chord_unlock` logs what caused an error of the join. Without a header nothing
        # was joined: the error is our own.
        is_joined = bool(self.header) and self.settlement is None and not self.policy.tolerate
        can = capabilities(self.app.backend)
        if is_joined and (can.polls or is_django(self.app.backend)):
            raised = error.__cause__ or error
        if not all(map(_is_readable, (raised, raised.__cause__))):
            # A log is no place for megabytes; the error of the chord shows how they begin.
            raised = ChordError(str(error))
        exc_info = (type(raised), raised, raised.__traceback__ or error.__traceback__)
        name = _counted_by(type(self.app.backend)) if can.counts else "celery.app.builtins"
        get_logger(name).error("Chord %r raised: %r", self.group_id, raised, exc_info=exc_info)

    def _report(self, outcome: str) -> End:
        signals.chord_ended.send(
            sender=self.app,
            group_id=self.group_id,
            outcome=outcome,
            errors=self.failed,
            seconds=None if self.started is None else max(0.0, time.time() - self.started),
        )
        # Without its members nobody knows more than was counted.
        return End(outcome, self.failed if self.header else None)


def _counted_by(kind: type) -> str:
    """Return the module of Celery that counts the chords of a class of backends, and logs of it."""
    modules = (owner.__module__ for owner in kind.__mro__ if "on_chord_part_return" in vars(owner))
    return next((name for name in modules if name.startswith("celery.")), kind.__module__)


def _is_readable(exc: BaseException | None) -> bool:
    """Tell whether an exception can be put into words, and into not too many."""
    try:
        return len(repr(exc)) <= 2 * LONGEST
    except Exception:  # noqa: BLE001 - anybody's __repr__
        return False


def _publish(app: Celery, body: Any, gathered: Any) -> None:
    # From 5.7 on Celery publishes a body again after a broker error.
    publish = getattr(app.amqp, "_retry_publish", None)
    if publish is None:
        body.delay(gathered)
    else:
        publish(body.delay, gathered)


def end_from_part(ledger: Ledger, claim: Claim, body: Mapping[str, Any]) -> None:
    """End a chord where its last part was counted; what goes wrong is left to the watchdog."""
    try:
        end(ledger, claim, body)
    except OUTSIDE:
        raise
    except Exception as exc:
        if not is_reported(exc):
            logger.exception("Could not complete chord %s; the watchdog will retry", claim.group_id)


def end(
    ledger: Ledger,
    claim: Claim,
    body: Mapping[str, Any],
    *,
    settlement: Settlement | None = None,
    takes_over: bool = False,
    is_body_damaged: bool = False,
) -> bool:
    """End a claimed chord and forget it.

    Arguments:
        ledger: Where the chord is counted.
        claim: The claim on it.
        body: Its body, which may be data.
        settlement: Why it ends although members may be missing; they count as lost then.
        takes_over: Whether another worker may have ended it until just now: the claim is checked
            once more before the body is published.
        is_body_damaged: Whether part of the body cannot be read: a settled chord fails then.

    Returns:
        False when it cannot end yet: the result of a member is not stored although it was
        counted, or the broker cannot be reached. The claim is released, the watchdog retries.
    """
    app = ledger.backend.app
    ending = Ending(app, claim.group_id, body, Policy.of(app, body))
    has_ended = False
    try:
        with claims.held(partial(_renew, ledger, claim)) as is_ours:
            if signals.chord_ended.receivers:
                ending = replace(ending, started=_started(ledger, claim))
            if settlement and (claim.header is None or is_body_damaged):
                how = ending.fail(_unknown(claim, settlement, is_body_damaged=is_body_damaged))
            else:
                header, results = ledger.collect(claim)
                missing = [id_ for id_ in leaf_ids(header) if id_ not in results]
                if missing and not settlement:
                    _wait(ledger, claim, missing, is_quiet=takes_over)
                    return False
                if not is_ours(takes_over):
                    logger.warning(CLAIM_LOST, claim.group_id)
                    return False
                ending = replace(ending, header=header, results=results)
                ending = replace(ending, settlement=settlement if missing else None)
                how = ending.publish_or_fail() if ending.settlement else ending.publish()
            has_ended = True
            ledger.close(claim.group_id, how)
    except (ChordUnreadable, OperationalError) as exc:
        _warn_of_delay(claim, exc)
        ledger.release(claim)
        return False
    except BaseException:
        if not has_ended:
            # Another worker may try at once, not only when the claim expires.
            with suppress(Exception):
                ledger.release(claim)
        raise
    return True


def _wait(ledger: Ledger, claim: Claim, missing: Sequence[str], *, is_quiet: bool) -> None:
    """Release the claim on a chord until the results of its `missing` members are stored."""
    if not is_quiet:  # the watchdog finds the same again and again
        warn_once_of(claim.group_id, NOT_STORED, ", ".join(missing))
    ledger.release(claim)


def _unknown(claim: Claim, settlement: Settlement, *, is_body_damaged: bool) -> ChordError:
    """Return the error of a chord that is settled without its body, or its members, being known."""
    what = "its body is" if is_body_damaged else "not all of its members are"
    return ChordError(f"{settlement.sentence(claim.group_id)}: {what} not known")


def _warn_of_delay(claim: Claim, exc: Exception) -> None:
    if isinstance(exc, ChordUnreadable):
        warn_once_of(claim.group_id, "Cannot complete chord %s yet: %s", exc)
    else:
        message = "Cannot publish the body of chord %s yet; the watchdog will retry"
        logger.warning(message, claim.group_id, exc_info=exc)


def _started(ledger: Ledger, claim: Claim) -> float | None:
    """Return when a chord started (Unix time), as far as that can be found out."""
    try:
        record = ledger.read(claim.group_id)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot read when chord %s started; its duration is not reported", claim.group_id)
        return None
    return None if record is None else record.created


def _renew(ledger: Ledger, claim: Claim) -> bool:
    """Renew a claim; return False where somebody else has it."""
    try:
        return ledger.renew(claim)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot renew the claim on chord %s", claim.group_id)
        return True
