from __future__ import annotations

import pytest
from celery import chord

#: On SQL only where parts are counted; Celery alone looks at each member's own result.
redis_alone = pytest.mark.parametrize("backend_kind", ["redis"])
every_kind = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def canvas(t):
    """A chord with a member that is replaced by a chord whose body is a chain."""
    steps = [{"task": "first", "does": "returns"}, {"task": "second", "does": "returns"}]
    replacement = {"chord": [{"task": "member", "does": "returns"}], "body": {"chain": steps}}
    return chord([t.replaced_step.s(node=replacement), t.echo.s(2)], t.collect.s())


@redis_alone
def test_outer_chord_hangs(without_fix):
    outcome = without_fix.outcome(canvas(without_fix.tasks), quiet=0.7)

    assert outcome.hung, outcome


@every_kind
def test_outer_chord_gets_the_result_of_the_chain(with_fix):
    given = [["second", ["first", [["member"]]]], 2]

    assert given == with_fix.run(canvas(with_fix.tasks))
