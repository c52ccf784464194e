"""`crossfade mismatches`: what shadow reads found to differ."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cyclopts import App

from crossfade.asking import (
    DEFAULT_ADDRESS,
    FAILED,
    OK,
    READ_SECONDS,
    Address,
    Json,
    Limit,
    moment,
    run,
    show,
    time_of,
)

if TYPE_CHECKING:
    from crossfade_api.v1 import admin_pb2

mismatches = App(
    name="mismatches",
    help="What shadow reads found to differ. Values are redacted; docs/shadow.md says how.",
    help_format="markdown",
)


@mismatches.default
def list_mismatches(
    *,
    collection: str = "",
    field: str = "",
    since: str | None = None,
    limit: Limit = 100,
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Lists them by signature (collection, verdict, which fields differ), the latest first.

    Ends with 1 if there are any.

    Example: crossfade mismatches --collection tasks --since 1h

    :param field: A field path; mismatches within it are listed, too.
    :param since: Only those met since then: 90s, 10m, 2h, 7d, or a time such as
        2026-03-01T12:00:00Z.
    """
    from crossfade_api.v1 import admin_pb2

    request = admin_pb2.ListMismatchesRequest(collection=collection, field=field, limit=limit)
    if since is not None:
        request.since.FromDatetime(moment(since))

    async def work(admin: Any) -> int:
        reply = await admin.ListMismatches(request, timeout=READ_SECONDS)
        rows = (
            (
                each.collection,
                each.verdict + (" (given up)" if each.given_up else ""),
                ", ".join(each.fields) or "(the whole)",
                str(each.count),
                each.path,
                time_of(each.latest.at),
            )
            for each in reply.mismatches
        )
        columns = ("collection", "verdict", "fields", "count", "latest document", "at")
        show(reply, json_, columns, rows)
        return FAILED if reply.mismatches else OK

    return run(address, work)


@mismatches.command
def explain(path: str, *, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Reads one document from both stores now and shows what differs. Repairs nothing.

    Ends with 1 if it is wrong, stale, missing or extra.

    Example: crossfade mismatches explain tasks/42

    :param path: A document's path, as COLLECTION/ID.
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        request = admin_pb2.ExplainMismatchRequest(name=path)
        found = await admin.ExplainMismatch(request, timeout=2 * READ_SECONDS)
        rows = (
            (each.field, each.kind, _shown(each, "authority"), _shown(each, "mirror"))
            for each in found.differences
        )
        if not json_:
            versions = ", ".join(
                f"{name} {_version(getattr(found, name))}" for name in ("firestore", "postgresql")
            )
            print(f"{found.path}: {found.verdict} ({found.authority} decides; {versions})")
        show(found, json_, ("field", "kind", "authority", "mirror"), rows)
        return OK if found.verdict in {"match", "behind"} else FAILED

    return run(address, work)


def _shown(difference: "admin_pb2.FieldDifference", side: str) -> str:
    if not difference.HasField(side):  # type: ignore[arg-type]
        return "-"
    value = getattr(difference, side)
    length = f" of {value.length}" if value.HasField("length") else ""
    return f"{value.type}{length} {value.value or '#' + value.hash}"


def _version(held: "admin_pb2.HeldVersion") -> str:
    if not held.exists:
        return "has none"
    return f"of {datetime.fromtimestamp(held.time / 1e6, UTC).isoformat()}"
