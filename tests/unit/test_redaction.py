"""Ids that are secrets: what is told instead of them."""

import asyncio
import io
import logging
import re

import pytest
import structlog

from crossfade import logs, redaction
from crossfade.diff import format_place
from crossfade.errors import NotFound
from crossfade.redaction import Redaction
from crossfade.settings import LogSettings
from violet.mapping import MAPPINGS

HIDING = Redaction({"api_keys", "user_emails"}, b"a key of the tests")
HASH = re.compile(r"#[0-9a-f]{16}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("document api_keys/s3cret does not exist", "document api_keys/# does not exist"),
        ("No document to update: api_keys/s3cret", "No document to update: api_keys/#"),
        (
            "Document already exists: projects/p/databases/(default)/documents/api_keys/s3cret",
            "Document already exists: projects/p/databases/(default)/documents/api_keys/#",
        ),
        ("document api_keys/s3cret: too large", "document api_keys/#: too large"),
        ('"user_emails/a.b+c@s3cret.example" is none', '"user_emails/#" is none'),
        ("user_emails/o'brien@s3cret.example.", "user_emails/#."),
        ("tasks/1/api_keys/s3cret, tasks/2", "tasks/1/api_keys/#, tasks/2"),
        ("api_keys/s3cret/parts/1 and api_keys/s3cret", "api_keys/#/parts/1 and api_keys/#"),
        ("document my_api_keys/1 and api_keys", "document my_api_keys/1 and api_keys"),
        ("api_keys/s3cr…", "api_keys/#…"),
    ],
)
def test_sentences(text, told):
    shown = HIDING.text(text)
    assert HASH.sub("#", shown) == told
    assert HIDING.text(shown) == shown  # and once is enough


def test_paths():
    path = HIDING.path("api_keys/an id, with anything/parts/2")
    assert re.fullmatch(r"api_keys/#[0-9a-f]{16}/parts/2", path)
    assert HIDING.path(path) == path
    assert HIDING.hides(path)
    assert not HIDING.hides("tasks/#1")
    assert HIDING.path("tasks/1") == "tasks/1"


def test_equal_ids_have_equal_hashes_under_a_key():
    assert HIDING.path("api_keys/a") in HIDING.text("document api_keys/a is there")
    assert HIDING.path("api_keys/a") != Redaction({"api_keys"}, b"another").path("api_keys/a")


def test_keys_of_maps_that_are_no_names_of_fields():
    assert format_place(("by_user", "ada", 0, "seen_at")) == "by_user.ada[0].seen_at"
    assert re.fullmatch(r"by_user\.`#[0-9a-f]{16}`", format_place(("by_user", "ada@example.com")))
    assert "x" * 41 not in format_place(("keys", "x" * 41))


def test_violet_says_which_ids_are_secrets():
    secret = {mapping.collection_id for mapping in MAPPINGS if mapping.secret_ids}
    assert secret == {"api_keys", "user_emails"}


# --- the log -------------------------------------------------------------------------------------


@pytest.fixture
def stream():
    handlers, level, present = logging.root.handlers, logging.root.level, redaction.present()
    yield io.StringIO()
    redaction._present = present
    structlog.reset_defaults()
    logging.root.handlers = handlers
    logging.root.setLevel(level)


SECRET = "s3cret"


def fail(secret: str) -> None:
    try:
        raise ValueError(secret)  # noqa: TRY301 - as a driver does
    except ValueError as error:
        raise NotFound(f"document api_keys/{secret}") from error


@pytest.mark.parametrize("shape", ["console", "json"])
def test_the_log_hides_them_and_what_strange_errors_say(stream, shape):
    redaction.install({"api_keys"})
    logs.configure(LogSettings(format=shape), stream)
    log = structlog.get_logger()
    log.warning("the stores differ", paths=["api_keys/s3cret"], reason="api_keys/s3cret is gone")
    try:
        fail(SECRET)
    except NotFound:
        log.exception("it failed")
        logging.getLogger("library").exception("so did this")
    loop = asyncio.new_event_loop()
    failed = loop.create_future()
    failed.set_exception(RuntimeError("s3cret"))
    loop.default_exception_handler({"message": "a future was forgotten", "future": failed})
    failed.exception()
    loop.close()

    text = stream.getvalue()

    for word in ("the stores differ", "it failed", "so did this", "a future was forgotten"):
        assert word in text
    assert "ValueError" in text
    assert "NotFound: document api_keys/#" in text
    assert "s3cret" not in text
