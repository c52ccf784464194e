"""Dead letters: listed, tried again, and foreign documents overwritten only when told to."""

import asyncio
import json

import grpc
import pytest

from crossfade.cli import main
from crossfade.errors import Internal
from crossfade.plan import Stage, StoreName
from crossfade.stores.postgres.mirror import Mirror
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2
from tests.sidecar import Running, eventually, running


@pytest.fixture
async def stack(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW) as made:
        await made.copy()
        yield made


async def letters(stack: Running, **request) -> list[admin_pb2.DeadLetter]:
    reply = await stack.admin.ListDeadLetters(admin_pb2.ListDeadLettersRequest(**request))
    return list(reply.letters)


async def retry(stack: Running, **request) -> int:
    reply = await stack.admin.RetryDeadLetters(admin_pb2.RetryDeadLettersRequest(**request))
    return reply.retried


async def dead(stack: Running, *paths: str) -> None:
    async def buried() -> bool:
        return [letter.path for letter in await letters(stack)] == sorted(paths)

    await eventually(buried)


async def foreign(stack: Running, *paths: str) -> None:
    """Somebody writes to Firestore; then the application writes the same documents."""
    for path in paths:
        await stack.direct.commit([Write(path, {"by": "somebody"})], timeout=5)
        await stack.client.set(path, {"by": "us"})
    await dead(stack, *paths)


def held(stack: Running, path: str):
    document = stack.memory.read(path)
    return None if document is None else document.fields


# --- lists -------------------------------------------------------------------------------------


async def test_what_is_told_of_a_dead_letter(stack):
    await stack.stage("live")
    await foreign(stack, "tasks/1", "notes/a/parts/2")
    await stack.client.set("tasks/1", {"by": "us", "again": True})

    async def twice() -> bool:
        return (await letters(stack, collection="tasks"))[0].commits == 2

    await eventually(twice)
    nested, mapped = await letters(stack)
    assert (nested.path, nested.collection) == ("notes/a/parts/2", "parts")
    assert (mapped.path, mapped.collection) == ("tasks/1", "tasks")
    assert (mapped.reason, mapped.cause) == ("commit", "foreign document in Firestore")
    assert (mapped.foreign, mapped.epoch) == (True, stack.sidecar.control.snapshot.epoch)
    assert mapped.since.seconds > 1_700_000_000
    assert "somebody" not in str(mapped)

    assert (await stack.sidecar.admin.backlog()).foreign == 3


async def test_dead_letters_page_by_page(stack):
    await stack.stage("live")
    await foreign(stack, "tasks/1", "tasks/2", "tasks/3")
    first = await stack.admin.ListDeadLetters(admin_pb2.ListDeadLettersRequest(limit=2))
    assert ([letter.path for letter in first.letters], first.more) == (["tasks/1", "tasks/2"], True)
    rest = await stack.admin.ListDeadLetters(
        admin_pb2.ListDeadLettersRequest(limit=2, after="tasks/2")
    )
    assert ([letter.path for letter in rest.letters], rest.more) == (["tasks/3"], False)


# --- retries -----------------------------------------------------------------------------------


async def test_a_foreign_document_is_looked_at_again_and_kept(stack):
    await stack.stage("live")
    await foreign(stack, "tasks/1")
    assert await retry(stack, all=True) == 1
    await dead(stack, "tasks/1")
    await stack.settled()
    await dead(stack, "tasks/1")
    assert held(stack, "tasks/1") == {"by": "somebody"}


async def test_a_foreign_document_is_overwritten_when_told_to(stack):
    await stack.stage("live")
    await foreign(stack, "tasks/1", "tasks/2")
    assert await retry(stack, path="tasks/1", overwrite_foreign=True) == 1
    await dead(stack, "tasks/2")
    await stack.settled()
    assert held(stack, "tasks/1") == {"by": "us"}
    assert held(stack, "tasks/2") == {"by": "somebody"}
    # From here on the way back goes on as ever.
    await stack.client.set("tasks/1", {"by": "us", "n": 2})
    await stack.settled()
    assert held(stack, "tasks/1") == {"by": "us", "n": 2}


async def test_a_foreign_delete_is_overwritten_when_told_to(stack):
    await stack.client.set("tasks/1", {"n": 1})
    await stack.settled()
    await stack.stage("live")
    await stack.direct.commit([Write("tasks/1", None)], timeout=5)
    await stack.client.set("tasks/1", {"n": 2})
    await dead(stack, "tasks/1")
    assert await retry(stack, collection="tasks", overwrite_foreign=True) == 1
    await stack.settled()
    assert held(stack, "tasks/1") == {"n": 2}


async def test_only_the_document_that_was_found_is_overwritten(stack):
    """It changes between the operator's look and the retry."""
    await stack.stage("live")
    await foreign(stack, "tasks/1")
    await stack.direct.commit([Write("tasks/1", {"by": "somebody", "n": 2})], timeout=5)
    assert await retry(stack, path="tasks/1", overwrite_foreign=True) == 1
    await stack.settled()
    await dead(stack, "tasks/1")
    assert held(stack, "tasks/1") == {"by": "somebody", "n": 2}
    assert await retry(stack, path="tasks/1", overwrite_foreign=True) == 1
    await stack.settled()
    assert held(stack, "tasks/1") == {"by": "us"}


async def test_a_document_whose_foreign_writer_went_away_needs_no_flag(stack):
    await stack.stage("live")
    await foreign(stack, "tasks/1")
    await stack.direct.commit([Write("tasks/1", None)], timeout=5)
    assert await retry(stack, path="tasks/1") == 1
    await stack.settled()
    assert held(stack, "tasks/1") == {"by": "us"}


async def test_dead_letters_of_the_way_there_are_tried_again(stack, monkeypatch):
    real = Mirror.put

    async def put(self, images, **options):
        if any(image.path == "tasks/bad" for image in images):
            raise Internal("a defect")
        return await real(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "put", put)
        await stack.direct.commit([Write("tasks/bad", {"n": 1})], timeout=5)
        rows = stack.sidecar.members["default"].forward._pending
        epoch = stack.sidecar.control.snapshot.epoch
        await rows.mark(["tasks/bad"], epoch, "repair", StoreName.FIRESTORE)
        await dead(stack, "tasks/bad")
    (letter,) = await letters(stack)
    assert (letter.reason, letter.cause, letter.attempts) == ("repair", "INTERNAL", 3)
    assert await retry(stack, collection="notes") == 0
    assert await retry(stack, path="tasks/bad") == 1
    await stack.settled()
    await dead(stack)
    assert await stack.sql.fetchval("select count(*) from violet.tasks") == 1


@pytest.mark.parametrize(
    "request_", [{}, {"path": "tasks/1", "all": True}, {"path": "a/b", "collection": "a"}]
)
async def test_a_retry_says_of_what(stack, request_):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await retry(stack, **request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("limit", [-1, 1001])
async def test_a_list_has_a_limit(stack, limit):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await letters(stack, limit=limit)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# --- the command -------------------------------------------------------------------------------


async def test_the_command_lists_and_retries(stack, capsys):
    async def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        where = ("--address", stack.sidecar.address)
        code = await asyncio.to_thread(main, ["dead-letters", *arguments, *where])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    assert await run("list", "--json") == (0, "[]\n", "")
    await stack.stage("live")
    await foreign(stack, "tasks/1", "notes/1")
    code, out, err = await run("list")
    assert (code, out) == (1, "")
    assert err.splitlines()[1].split()[:2] == ["notes/1", "commit"]
    assert "foreign document in Firestore" in err
    code, out, _ = await run("list", "--collection", "tasks", "--json")
    (shown,) = json.loads(out)
    assert (code, shown["path"], shown["foreign"]) == (1, "tasks/1", True)
    assert await run("retry", "tasks/1", "--json") == (0, '{"retried": 1}\n', "")
    await stack.settled()
    await dead(stack, "notes/1", "tasks/1")
    code, out, _ = await run("retry", "--all", "--overwrite-foreign")
    assert (code, out) == (0, "2 dead letters are tried again\n")
    await stack.settled()
    await dead(stack)
    assert held(stack, "notes/1") == {"by": "us"}
    assert (await run("retry", "--all"))[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--address", "127.0.0.1:1"], ["no sidecar answers at 127.0.0.1:1"]),
        (["list", "--address", "nowhere"], ["--address", "HOST:PORT"]),
        (["retry"], ["a path, --collection NAME or --all"]),
        (["retry", "tasks/1", "--all"], ["one of them"]),
    ],
)
def test_what_cannot_start_ends_with_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("crossfade.admin_commands.CONNECT_SECONDS", 0.3)
    assert main(["dead-letters", *arguments]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert all(word in told for word in words)
