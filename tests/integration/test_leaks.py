"""What must not be told is told nowhere: a whole run, and a search through all that it said.

Both stores, every API, verdicts, dead letters, faults, refusals; then logs, spans and metrics as
a collector gets them, error texts, samples, and what the admin service lists.
"""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
import structlog
from google.cloud.firestore_v1 import types

from crossfade import logs
from crossfade.errors import Internal
from crossfade.migrator import Migrator
from crossfade.pending import Pending
from crossfade.plan import Stage
from crossfade.settings import LogSettings, TelemetrySettings
from crossfade.starting import supervise
from crossfade.stores.firestore import FirestoreStore
from crossfade.telemetry import Telemetry
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2, violet_pb2
from crossfade_client import AsyncCrossfade, CrossfadeError, Query
from crossfade_client import Write as ClientWrite
from tests.http_caller import call
from tests.integration.test_tracing import collector  # noqa: F401 - a fixture
from tests.postgres_fixture import MakeDatabase
from tests.sidecar import DATABASE, Running, eventually, running
from tests.violet_caller import Caller, values

TOKEN, WRONG_TOKEN = "token-canary-4c1b5f", "wrong-canary-77d0aa"
ADMIN_TOKEN = "admin-canary-e02c1d"
API_KEY, OTHER_KEY, NO_KEY = "key-canary-91ab", "key-canary-52cd", "key-canary-none"
EMAIL, OTHER_EMAIL = "ada.canary@leak.example", "bob.canary@leak.example"
VALUE, NUMBER, BYTES = "value-canary-08e1", 918_273_645_546, b"bytes-canary-3f"
CANARIES = (
    *(TOKEN, WRONG_TOKEN, ADMIN_TOKEN, API_KEY, OTHER_KEY, NO_KEY, EMAIL, OTHER_EMAIL, VALUE),
    *(str(NUMBER), BYTES.decode(), "canary"),
)
FIELDS = {
    "marker": VALUE,
    "n": NUMBER,
    "raw": BYTES,
    "by_user": {EMAIL: {"seen": NUMBER}},
    "status": 7,  # a misfit: the column is of text
}
EARLY = datetime(2020, 1, 1, tzinfo=UTC)


class Heard:
    """Everything that anybody was told beside an answer."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.errors: list[str] = []
        self.codes: set[str] = set()

    async def refused(self, call: Awaitable[Any]) -> None:
        """The call fails, and what it says is kept."""
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self.codes.add(error.code().name)
            trailing = error.trailing_metadata() or ()
            self.errors.append(f"{error.details()} {error.debug_error_string()} {list(trailing)}")
        except CrossfadeError as error:
            self.codes.add(error.code.name)
            self.errors.append(f"{error} {error!r}")
        else:
            pytest.fail("it did not fail")


@pytest.fixture
def heard() -> Any:
    handlers, level = logging.root.handlers, logging.root.level
    found = Heard()
    logs.configure(LogSettings(level="debug", format="json"), found.stream)
    yield found
    structlog.reset_defaults()
    logging.root.handlers = handlers
    logging.root.setLevel(level)


async def test_nothing_is_told_that_must_not_be(
    postgres_database: MakeDatabase,
    heard: Heard,
    collector: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    collected, endpoint = collector
    telemetry = Telemetry(TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=1.0))
    tokens = f"proxy reader {TOKEN}, operator admin {ADMIN_TOKEN}"
    access = {"tokens": tokens, "trust": ("loopback",), "trusted_role": "admin"}
    async with running(
        *(await postgres_database(), Stage.SHADOW, telemetry),
        shadow_rate=1.0,
        access=access,
        http={},
    ) as stack:
        await stack.copy()
        caller = Caller(stack)
        await of_callers(stack, heard)
        await of_violet(caller, heard)
        await of_documents(stack, heard)
        await of_firestore(stack, heard)
        await of_defects(stack, heard, monkeypatch)
        await of_verdicts(stack)
        await stack.stage("live")
        await of_violet(caller, heard)
        await of_documents(stack, heard)
        await of_dead_letters(stack, heard)
        listed = await of_the_admin_service(stack, heard)
        pages = await of_the_admin_api(stack)
        rows = await stack.sql.fetch("select m::text from crossfade.mismatches m")
        audit = await stack.sql.fetch("select a::text from crossfade.audit a")
        await of_an_outage(stack, heard, monkeypatch)
        await caller.channel.close()
        await asyncio.to_thread(telemetry.flush)
        await asyncio.to_thread(telemetry.close)

    said = {
        "logs": heard.stream.getvalue(),
        "errors": "\n".join(heard.errors),
        "samples": "\n".join(row[0] for row in rows),
        "audit": "\n".join(row[0] for row in audit),
        "admin": listed,
        "admin API": pages,
        "collector": collected.raw.decode("latin-1"),
    }
    for where, text in said.items():
        for canary in CANARIES:
            for shape in (canary, quote(canary, safe="")):
                at = text.find(shape)
                assert at < 0, f"{canary} in {where}: ...{text[max(0, at - 200) : at + 100]}"
    # It was all there to be told of.
    assert heard.codes >= {
        *("UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "ALREADY_EXISTS"),
        *("INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL"),
    }
    assert heard.codes & {"UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN"}  # of the outage
    assert "api_keys/#" in said["errors"]
    assert "user_emails/#" in said["errors"]
    assert "api_keys/#" in said["samples"]
    assert "by_user.`#" in said["samples"]
    assert "wrong" in said["samples"]
    assert "api_keys/#" in said["admin"]
    for shown in ("api_keys/#", "unauthenticated", "crossfade_verdicts_total", "missing"):
        assert shown in said["admin API"].lower()
    for event in ("a request failed by a defect", "a worker failed", "RuntimeError"):
        assert event in said["logs"]
    assert "shadow get tasks" in said["collector"]
    assert "crossfade.verdicts" in said["collector"]


async def of_callers(stack: Running, heard: Heard) -> None:
    async with (
        AsyncCrossfade(stack.sidecar.address, token=TOKEN) as reader,
        AsyncCrossfade(stack.sidecar.address, token=WRONG_TOKEN) as stranger,
    ):
        await heard.refused(stranger.get("tasks/1"))
        await heard.refused(reader.set("tasks/1", FIELDS))
        await heard.refused(reader.get(f"api_keys/{NO_KEY}"))


async def of_violet(caller: Caller, heard: Heard) -> None:
    users: Any = caller.users
    for email, key in ((EMAIL, API_KEY), (OTHER_EMAIL, OTHER_KEY)):
        request = violet_pb2.CreateUserRequest(
            email=email, role="client", api_key=key, fields=values(hotkey=VALUE, uid=NUMBER)
        )
        with suppress(grpc.aio.AioRpcError):  # the second time it is there
            await users.CreateUser(request)
        await heard.refused(users.CreateUser(request))
    await users.GetUserByApiKey(violet_pb2.GetUserByApiKeyRequest(api_key=API_KEY))
    await users.GetUserByEmail(violet_pb2.GetUserByEmailRequest(email=EMAIL))
    await heard.refused(users.GetUserByApiKey(violet_pb2.GetUserByApiKeyRequest(api_key=NO_KEY)))
    missing = violet_pb2.GetUserByEmailRequest(email=f"no.{EMAIL}")
    await heard.refused(users.GetUserByEmail(missing))
    odd = violet_pb2.CreateUserRequest(email=f"{EMAIL}/x", role="client")
    await heard.refused(users.CreateUser(odd))


async def of_documents(stack: Running, heard: Heard) -> None:
    client = stack.client
    for path in ("tasks/1", "notes/1", f"api_keys/{NO_KEY}-2", f"user_emails/x.{EMAIL}"):
        await client.set(path, FIELDS)
        await client.find(path)
        await heard.refused(client.create(path, FIELDS))
        await heard.refused(client.update(path, {"marker": VALUE}, update_time=EARLY))
    for path in (f"api_keys/{NO_KEY}", f"user_emails/no.{EMAIL}"):
        await heard.refused(client.get(path))
        await heard.refused(client.update(path, {"marker": VALUE}))
        await heard.refused(client.set(path, {"a": VALUE * 70_000}))
        twice = [ClientWrite.create(path, FIELDS), ClientWrite.update(path, {"a": 1})]
        await heard.refused(client.commit([*twice, ClientWrite.create(path, FIELDS)]))
        await heard.refused(client.get(f"{path}/half"))
    query = Query("tasks").where("marker", "==", VALUE).order_by("marker").start_at(VALUE)
    assert [found async for found in client.query(query)]
    await heard.refused(anext(client.query(Query("tasks").start_at(VALUE))))


async def of_firestore(stack: Running, heard: Heard) -> None:
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:

        def ask(method: str, request: Any) -> Any:
            call: Any = channel.unary_unary(f"/google.firestore.v1.Firestore/{method}")
            return call(type(request).serialize(request))

        root = f"{DATABASE.name}/documents"
        name = f"{root}/api_keys/{NO_KEY}"
        await heard.refused(ask("GetDocument", types.GetDocumentRequest(name=name)))
        exists = types.Precondition(exists=True)
        write = types.Write(update=types.Document(name=name), current_document=exists)
        commit = types.CommitRequest(database=DATABASE.name, writes=[write])
        await heard.refused(ask("Commit", commit))
        batch = types.BatchWriteRequest(database=DATABASE.name, writes=[write])
        reply = types.BatchWriteResponse.deserialize(await ask("BatchWrite", batch))
        assert reply.status[0].code
        heard.errors.append(reply.status[0].message)
        wrong = types.GetDocumentRequest(name=f"{root}/api_keys/{NO_KEY}/x")
        await heard.refused(ask("GetDocument", wrong))


async def of_defects(stack: Running, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that nobody foresaw, which quote what they were at."""

    def raising(_: Any, *__: Any, **___: Any) -> Any:
        raise RuntimeError(f"cannot encode {VALUE} of {EMAIL}")

    for place, method in ((Migrator, "read"), (Migrator, "commit"), (FirestoreStore, "get")):
        with monkeypatch.context() as patch:
            patch.setattr(place, method, raising)
            path = f"api_keys/{NO_KEY}"
            call = stack.client.set(path, FIELDS) if method == "commit" else stack.client.get(path)
            await heard.refused(call)
    with monkeypatch.context() as patch:
        patch.setattr(stack.sidecar.control, "follow", raising)
        task = supervise("control", stack.sidecar.control.follow)
        await eventually(_said(heard, "a worker failed"), 30)
        task.cancel()
    await stack.settled(40)


async def _internal(*_arguments: Any, **_options: Any) -> None:
    raise Internal(f"a row of api_keys/{API_KEY} cannot be put")


def _said(heard: Heard, words: str) -> Callable[[], Awaitable[bool]]:
    async def said() -> bool:
        return words in heard.stream.getvalue()

    return said


def _left_to_the_worker(stack: Running, heard: Heard) -> Callable[[], Awaitable[bool]]:
    """Whether a put was: a commit that PostgreSQL is too slow for goes by the outbox, and has no
    put of its own."""

    async def left() -> bool:
        await stack.client.set("notes/2", FIELDS)
        return "a put is left to the recopy worker" in heard.stream.getvalue()

    return left


async def of_verdicts(stack: Running) -> None:
    """What hand edits in PostgreSQL make of the mirror."""
    await stack.client.set("notes/3", FIELDS)
    await stack.settled(40)
    await stack.sql.execute(
        "update crossfade.documents set fields = replace(fields::text, $1, '1')::jsonb "
        "where path = 'notes/3'",
        str(NUMBER),
    )
    await stack.sql.execute("delete from violet.api_keys where id = $1", OTHER_KEY)
    for path in ("notes/3", f"api_keys/{OTHER_KEY}", f"user_emails/{EMAIL}"):
        await stack.client.get(path)
    await stack.settled(40)
    await stack.sidecar.shadow._samples.flush()


async def of_dead_letters(stack: Running, heard: Heard) -> None:
    """Documents that somebody wrote around the sidecar."""
    for path in (f"api_keys/{NO_KEY}-4", f"api_keys/{NO_KEY}-5"):
        await stack.direct.commit([Write(path, {"marker": VALUE})], timeout=5)
        await stack.client.set(path, FIELDS)

    async def buried() -> bool:
        return len(await letters(stack)) == 2

    await eventually(buried, 30)
    first, second = await letters(stack, limit=1), await letters(stack)
    # The shown path leads on, and to the document.
    assert [each.path for each in await letters(stack, after=first[0].path)] == [second[1].path]
    request = admin_pb2.RetryDeadLettersRequest(path=first[0].path, overwrite_foreign=True)
    assert (await stack.admin.RetryDeadLetters(request)).retried == 1
    request = admin_pb2.RetryDeadLettersRequest(path="api_keys/#0123456789abcdef")
    await heard.refused(stack.admin.RetryDeadLetters(request))


async def letters(stack: Running, **request: Any) -> list[Any]:
    reply = await stack.admin.ListDeadLetters(admin_pb2.ListDeadLettersRequest(**request))
    return list(reply.letters)


async def of_the_admin_service(stack: Running, heard: Heard) -> str:
    """What it lists."""
    admin = stack.admin
    await heard.refused(admin.SetStage(admin_pb2.SetStageRequest(stage="no such stage")))
    replies = [
        await admin.GetStatus(admin_pb2.GetStatusRequest()),
        await admin.ListMismatches(admin_pb2.ListMismatchesRequest()),
        await admin.ListAudit(admin_pb2.ListAuditRequest()),
        await admin.ListDeadLetters(admin_pb2.ListDeadLettersRequest()),
        await admin.ListRamps(admin_pb2.ListRampsRequest()),
    ]
    return "\n".join(map(str, replies))


async def of_the_admin_api(stack: Running) -> str:
    """Its pages, and its refusals."""
    address = stack.sidecar.web.address
    owner = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    pages = [
        *("status", "stages", "traffic", "ramps", "mismatches", "dead-letters", "audit"),
        *("drift", "latency", "config", f"nothing/{VALUE.encode().hex()}"),
    ]
    paths = [*(f"/api/v1/{page}" for page in pages), "/metrics", "/openapi.json"]
    answers = [await call(address, path, headers=owner) for path in paths]
    for token in (WRONG_TOKEN, TOKEN):
        wrong = {"Authorization": f"Bearer {token}"}
        answers.append(await call(address, "/api/v1/status", headers=wrong))
    answers += [
        await call(address, f"/api/v1/{page}", body, headers=owner)
        for body in ({"stage": 7}, b"{", {"path": "api_keys/#0123456789abcdef"})
        for page in ("stages/set", "dead-letters/retry")
    ]
    return "\n".join(f"{answer.status} {answer.body.decode()}" for answer in answers)


async def of_an_outage(stack: Running, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    request = admin_pb2.RetryDeadLettersRequest(all=True, overwrite_foreign=True)
    await stack.admin.RetryDeadLetters(request)
    await stack.settled(40)
    await stack.stage("shadow")
    with monkeypatch.context() as patch:
        patch.setattr(Pending, "settle", _internal)
        await eventually(_left_to_the_worker(stack, heard), 30)
    await stack.firestore_server.stop(0)
    path = f"user_emails/{EMAIL}"
    async with AsyncCrossfade(stack.sidecar.address, timeout=2, retries=0) as client:
        await heard.refused(client.set(path, FIELDS))
