"""No part of the user info of a URL is shown, logged or answered, whatever a driver says."""

from __future__ import annotations

import logging
import traceback
from urllib.parse import quote

import pytest
from celery import Celery

from chordguard import check_stuck_chords, health_check, install_patches, masking, patch_report
from chordguard.errors import CannotTell
from tests.servers import free_port

#: Parts of a user name and of a password, with one of CHARS between them.
PARTS = ("quu1", "quu2", "zxq3", "zxq4")
CHARS = ["/", "@", ":", "#", "?", "%", '"', "'", " ", "[", "é"]

#: Nobody answers there.
PORT = free_port()
BACKENDS = {
    "redis": f"redis://{{}}:{{}}@127.0.0.1:{PORT}/0",
    "postgresql": f"db+postgresql+psycopg2://{{}}:{{}}@127.0.0.1:{PORT}/d",
    "mysql": f"db+mysql+pymysql://{{}}:{{}}@127.0.0.1:{PORT}/d",
    "without a scheme": f"redis:/{{}}:{{}}@127.0.0.1:{PORT}/0",
}
BROKERS = {
    "redis": f"redis://{{}}:{{}}@127.0.0.1:{PORT}/0",
    "sentinel": f"sentinel://{{}}:{{}}@127.0.0.1:{PORT}",
    "amqp": f"amqp://{{}}:{{}}@127.0.0.1:{PORT}//",
}

chars = pytest.mark.parametrize("char", CHARS)
encodings = pytest.mark.parametrize("is_encoded", [False, True], ids=["raw", "encoded"])


def url_of(template, char, is_encoded):
    user, password = f"{PARTS[0]}{char}{PARTS[1]}", f"{PARTS[2]}{char}{PARTS[3]}"
    if is_encoded:
        user, password = quote(user, safe=""), quote(password, safe="")
    return template.format(user, password)


def make_app(**urls):
    app = Celery("masked", set_as_current=False, broker="memory://")
    app.conf.update(urls)
    install_patches(app)
    return app


def assert_masked(*texts):
    for text in texts:
        assert [] == [part for part in PARTS if part in str(text).lower()], text


@encodings
@chars
@pytest.mark.parametrize("kind", BACKENDS)
def test_url_of_the_result_backend(kind, char, is_encoded):
    app = make_app(result_backend=url_of(BACKENDS[kind], char, is_encoded))

    with pytest.raises(CannotTell) as caught:
        check_stuck_chords(app)
    answer = health_check(app)

    assert "unknown" == answer["status"]
    shown = "".join(traceback.format_exception(caught.value))
    assert_masked(caught.value, shown, answer, patch_report(app))


@encodings
@chars
@pytest.mark.parametrize("kind", BROKERS)
def test_url_of_the_broker(kind, char, is_encoded):
    app = make_app(broker_url=url_of(BROKERS[kind], char, is_encoded))

    with pytest.raises(CannotTell) as caught:
        connect_to_broker(app)

    assert f"127.0.0.1:{PORT}" in str(caught.value)
    assert_masked(caught.value, "".join(traceback.format_exception(caught.value)))


def connect_to_broker(app):
    from chordguard.upstream.workers import broker_of

    with broker_of(app, 0.2):
        raise AssertionError("nobody answers there")


@pytest.mark.parametrize("kind", ["result backend", "broker"])
def test_url_that_cannot_be_parsed_is_said_to_be_so(kind):
    url = "redis://:zxq3/zxq4@localhost/0"
    setting = "result_backend" if kind == "result backend" else "broker_url"
    app = make_app(**{setting: url})

    with pytest.raises(CannotTell) as caught:
        check_stuck_chords(app) if kind == "result backend" else connect_to_broker(app)

    assert str(caught.value).endswith(
        f": the {setting} URL cannot be parsed: percent-encode the user name and password"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_password": "zxq3/zxq4"},
        {"broker_url": ["memory://", "amqp://quu1:zxq3@host;amqp://quu2:zxq4@host"]},
        {"broker_read_url": "amqp://quu1:zxq3/zxq4@host"},
        {"broker_transport_options": {"sentinel_kwargs": {"password": "zxq3/zxq4"}}},
        {"result_backend_transport_options": {"password": "zxq3/zxq4"}},
        {"database_engine_options": {"connect_args": {"password": "zxq3/zxq4", "user": "quu1"}}},
        {"result_backend": "redis://host/0?password=zxq3%2Fzxq4"},
        {"redis_password": "zxq3/zxq4"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_user_info_may_stand_elsewhere(settings):
    app = make_app(**settings)

    said = masking.masked("no such port: 'zxq3', nor ZXQ4@host, zxq3%2Fzxq4; zxq3/zxq4")
    del app

    assert_masked(said)
    assert "no such port" in said


def test_words_that_only_contain_a_user_name_are_left():
    app = make_app(result_backend="redis://us:pw@host")

    said = masking.masked("us, user, pw, pwn: status")
    del app

    assert "**, user, **, pwn: status" == said


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://me:a/b@c@host:1/0?x=1", "redis://host:1/0"),
        ("sentinel://:p@a:1;sentinel://:p@b:2", "sentinel://a:1;sentinel://b:2"),
        ("sqlite:////tmp/a@b.db", "sqlite:////tmp/a@b.db"),
        (["amqp://me@a//", "amqp://me@b//"], "amqp://a//;amqp://b//"),
    ],
)
def test_address_is_without_user_info(url, address):
    assert address == masking.address_of(url)


@pytest.mark.parametrize("name", ["chordguard", "chordguard.check"])
def test_exceptions_in_the_log_are_masked_whoever_formats_them(name, caplog):
    app = make_app(result_backend="redis://quu1:zxq3@host")
    logger = logging.getLogger(name)

    try:
        raise ValueError(f"Port {PARTS[2]!r}") from KeyError(PARTS[0])
    except ValueError as exc:
        logger.exception("It is %s", exc)
        logger.warning("Chord of quu1: our own words are left", exc_info=True)
    del app

    assert_masked(caplog.text.replace("Chord of quu1", ""))
    assert caplog.text.count("ValueError: Port '**'") == 2
    assert 'File "' in caplog.text
    assert [None, None] == [record.exc_info for record in caplog.records]


def test_exceptions_without_user_info_are_logged_as_they_are(caplog):
    try:
        raise ValueError("nothing secret")
    except ValueError as exc:
        raised = exc
        logging.getLogger("chordguard").exception("It is %s", 1)

    assert raised is caplog.records[0].exc_info[1]
    assert raised is masking.cause_to_show(raised)
