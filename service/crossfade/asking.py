"""What the commands share that ask a running sidecar: their options, the words in them, the call
of the admin service at --address, and how its answer is shown."""

import asyncio
import getpass
import json
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from crossfade.admin_commands import connected
from crossfade.probes import CannotStart

if TYPE_CHECKING:
    from google.protobuf.message import Message


OK, FAILED = 0, 1
ALL = "all"
READ_SECONDS = 15.0
MARGIN_SECONDS = 15.0
"""Over the time that a change of stage may take."""

Address = Annotated[
    str,
    Parameter(
        env_var="CROSSFADE_ADDRESS",
        help="HOST:PORT or unix:PATH of the sidecar, as `crossfade serve` prints.",
    ),
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Prints JSON on stdout.")
]
Reason = Annotated[str, Parameter(help="For the audit trail.")]
Percent = Annotated[float, Parameter(validator=Number(gte=0, lte=100))]
OfGroup = Annotated[
    str,
    Parameter(
        name="--group", help="A group of collections, by its name in the settings; else default."
    ),
]
Limit = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000))]
DEFAULT_ADDRESS = "127.0.0.1:7600"


# --- running -----------------------------------------------------------------------------------


def run(address: str, work: Callable[[Any], Awaitable[int]]) -> int:
    """Runs `work` with a stub of the admin service."""
    return asyncio.run(_called(address, work))


async def _called(address: str, work: Callable[[Any], Awaitable[int]]) -> int:
    import grpc

    async with connected(address) as admin:
        try:
            return await work(admin)
        except grpc.aio.AioRpcError as error:
            print(f"crossfade: {error.details()} ({error.code().name})", file=sys.stderr)
            return FAILED


def show(
    message: "Message", as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """The reply on stdout: as a table, or all of it as JSON."""
    if as_json:
        from google.protobuf.json_format import MessageToDict

        shown = MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        print(json.dumps(shown, indent=2))
        return
    from rich.console import Console

    from crossfade.display import print_table

    found = list(rows)
    if found:
        print_table(columns, found, Console(highlight=False))


def time_of(stamp: Any) -> str:
    return str(stamp.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"))


def who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container without an entry for its user
        return f"somebody@{socket.gethostname()}"


# --- words -------------------------------------------------------------------------------------

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def duration(text: str) -> float:
    """Seconds of "90s", "10m", "2h", "7d". Raises CannotStart."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise CannotStart(f'"{text[:40]}" is no duration: write 90s, 10m, 2h or 7d')
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str) -> datetime:
    """A moment in UTC: so long ago, or an ISO time (UTC where it says nothing else)."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(time.time() - duration(text), UTC).replace(tzinfo=None)
    return (at if at.tzinfo is None else at.astimezone(UTC)).replace(tzinfo=None)


def share(text: str) -> float:
    """0..1 of "0.01%" or "0.0001". Raises CannotStart."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e-\d+)?)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value <= 1:
        raise CannotStart(f'"{text[:40]}" is no share: write 0.01% or 0.0001')
    return value
