"""The commands that ask a running sidecar, over gRPC: dead letters, listed and tried again."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from crossfade.probes import CannotStart

if TYPE_CHECKING:
    import grpc.aio

    from crossfade_api.v1 import admin_pb2, admin_pb2_grpc

OK, FAILED = 0, 1
CONNECT_SECONDS = 5.0
CALL_SECONDS = 30.0
PAGE = 500
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "CROSSFADE_TOKEN", "CROSSFADE_TOKEN_FILE"
CA_VARIABLE = "CROSSFADE_CA"
CERT_VARIABLE, KEY_VARIABLE = "CROSSFADE_CLIENT_CERT", "CROSSFADE_CLIENT_KEY"
Address = Annotated[
    str, Parameter(env_var="CROSSFADE_ADDRESS", help="HOST:PORT of a sidecar, or unix:PATH.")
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="JSON on stdout, no table.")]

dead_letters = App(
    name="dead-letters",
    help="Documents that could not be put into the mirror. They are kept and hold up a change of "
    "authority until they were looked at.",
    help_epilogue="The usual order: `list`; remove the cause; `retry`. A foreign document is one "
    "that Firestore holds and that nobody wrote through a sidecar: compare the two, then either "
    "put things right yourself and `retry`, or `retry --overwrite-foreign` to keep PostgreSQL's.",
    help_format="markdown",
)


@dead_letters.command(name="list")
def list_(
    *,
    collection: str | None = None,
    address: Address = "127.0.0.1:7600",
    as_json: Json = False,
) -> int:
    """Shows path, reason, cause, attempts and age of every dead letter, never a value.

    `reason` is what made the document pending (commit, repair, sweep, rollback), `cause` why it
    could not be put. Ends with 1 if there are any.

    Example: crossfade dead-letters list --collection tasks --json

    :param collection: Only those of a collection id.
    """

    async def work(admin: "admin_pb2_grpc.AdminAsyncStub") -> int:
        from crossfade.display import print_table

        letters = await _letters(admin, collection or "")
        if as_json:
            print(json.dumps([_plain(letter) for letter in letters], indent=2))
            return FAILED if letters else OK
        if letters:
            headers = ("path", "reason", "cause", "attempts", "commits", "epoch", "since")
            print_table(headers, map(_line, letters))
        print(f"{len(letters)} dead letters", file=sys.stderr)
        return FAILED if letters else OK

    return _ask(address, work)


@dead_letters.command
def retry(
    path: str | None = None,
    *,
    collection: str | None = None,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    overwrite_foreign: Annotated[bool, Parameter(negative="")] = False,
    address: Address = "127.0.0.1:7600",
    as_json: Json = False,
) -> int:
    """Has dead letters tried again: of one document, of a collection, or all.

    Returns at once; `list` shows what is left a little later. Ends with 1 if there was
    nothing to try.

    Example: crossfade dead-letters retry tasks/1

    Example: crossfade dead-letters retry --collection tasks --overwrite-foreign

    :param path: The path of a document, as `list` shows it.
    :param collection: All of a collection id.
    :param every: All there are.
    :param overwrite_foreign: Where a foreign document was found in Firestore, PostgreSQL's
        takes its place. One that changed after it was found is looked at again.
    """
    if sum((path is not None, collection is not None, every)) != 1:
        raise CannotStart("say which: a path, --collection NAME or --all; one of them")

    async def work(admin: "admin_pb2_grpc.AdminAsyncStub") -> int:
        from crossfade_api.v1 import admin_pb2

        request = admin_pb2.RetryDeadLettersRequest(
            path=path or "",
            collection=collection or "",
            all=every,
            overwrite_foreign=overwrite_foreign,
        )
        reply = await admin.RetryDeadLetters(request, timeout=CALL_SECONDS)
        if as_json:
            print(json.dumps({"retried": reply.retried}))
        else:
            print(f"{reply.retried} dead letters are tried again")
        return OK if reply.retried else FAILED

    return _ask(address, work)


# --- what they share -----------------------------------------------------------------------------


async def _letters(
    admin: "admin_pb2_grpc.AdminAsyncStub", collection: str
) -> "list[admin_pb2.DeadLetter]":
    from crossfade_api.v1 import admin_pb2

    letters: list[admin_pb2.DeadLetter] = []
    while True:
        request = admin_pb2.ListDeadLettersRequest(
            collection=collection, limit=PAGE, after=letters[-1].path if letters else ""
        )
        reply = await admin.ListDeadLetters(request, timeout=CALL_SECONDS)
        letters += reply.letters
        if not reply.more:
            return letters


def _plain(letter: "admin_pb2.DeadLetter") -> dict[str, object]:
    return {
        "path": letter.path,
        "collection": letter.collection,
        "reason": letter.reason,
        "cause": letter.cause,
        "attempts": letter.attempts,
        "commits": letter.commits,
        "epoch": letter.epoch,
        "foreign": letter.foreign,
        "since": letter.since.ToJsonString(),
    }


def _line(letter: "admin_pb2.DeadLetter") -> tuple[str, ...]:
    counts = (letter.attempts, letter.commits, letter.epoch)
    since = letter.since.ToDatetime().isoformat(" ", "seconds")
    return (letter.path, letter.reason, letter.cause, *map(str, counts), since)


def _ask(address: str, work: "Callable[[admin_pb2_grpc.AdminAsyncStub], Awaitable[int]]") -> int:
    import grpc

    from crossfade.stores.firestore import from_rpc_error

    async def asked() -> int:
        try:
            async with connected(address) as admin:
                return await work(admin)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    return asyncio.run(asked())


@asynccontextmanager
async def connected(address: str) -> "AsyncIterator[admin_pb2_grpc.AdminAsyncStub]":
    """The sidecar's admin service. Raises CannotStart when nothing answers there."""
    from crossfade_api.v1 import admin_pb2_grpc

    async with sidecar_channel(address) as channel:
        stub: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(channel)
        yield stub


@asynccontextmanager
async def sidecar_channel(
    address: str, options: "Sequence[tuple[str, Any]]" = ()
) -> "AsyncIterator[grpc.aio.Channel]":
    """To a sidecar that answers, as whoever types is. Raises CannotStart when none does."""
    host, _, port = address.rpartition(":")
    if not address.startswith("unix:/") and (not host or not port.isdecimal()):
        raise CannotStart(f'--address: "{address}" is not HOST:PORT, or unix:PATH')
    async with _channel(address, options) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            raise CannotStart(
                f"no sidecar answers at {address}; is it running, and --address right?"
            ) from None
        yield channel


def _channel(address: str, options: "Sequence[tuple[str, Any]]") -> "grpc.aio.Channel":
    """With the caller's token, over TLS where there is a CA, there with a certificate of his own:
    by the environment, which the options of the command line were put into."""
    import grpc

    from crossfade.bearer import bearing

    token = os.environ.get(TOKEN_VARIABLE, "")
    if file := os.environ.get(TOKEN_FILE_VARIABLE):
        token = _read(file, TOKEN_FILE_VARIABLE).decode().strip()
    interceptors = bearing(token) if token else []
    if file := os.environ.get(CA_VARIABLE):
        own = [
            _read(mine, variable) if (mine := os.environ.get(variable)) else None
            for variable in (KEY_VARIABLE, CERT_VARIABLE)
        ]
        credentials = grpc.ssl_channel_credentials(_read(file, CA_VARIABLE), *own)
        return grpc.aio.secure_channel(address, credentials, options, interceptors=interceptors)
    return grpc.aio.insecure_channel(address, options, interceptors=interceptors)


def _read(file: str, variable: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CannotStart(f"{variable}: {file} cannot be read: {error.strerror}") from None
