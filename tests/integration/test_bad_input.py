"""Requests that can never succeed, over a real socket: refused as what they are, by name and
limit, without a trace in either store, and without quoting what a document holds."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import structlog
from google.protobuf.message import Message

from crossfade.document import OWN_COLLECTION_PREFIX
from crossfade.migrator import Migrator
from crossfade.plan import Stage, StoreName
from crossfade_api.v1 import admin_pb2, crossfade_pb2, document_pb2, query_pb2
from tests.sidecar import DATABASE, Running, running

SECRET = "s3cret-content"
GOOD = "tasks/good"
REFUSED = "tasks/refused"
CROSSFADE, ADMIN = "/crossfade.v1.Crossfade/", "/crossfade.v1.Admin/"
STREAMS = {CROSSFADE + "Query", CROSSFADE + "BatchGetDocuments"}
STAGES = (Stage.OFF, Stage.SHADOW, Stage.LIVE)

# Any: these requests are not what their types ask for.
Value: Any = document_pb2.Value
Write: Any = document_pb2.Write
Structured: Any = query_pb2.StructuredQuery


@pytest_asyncio.fixture(scope="module", params=STAGES, ids=str)
async def stack(request: Any, postgres_database: Any) -> AsyncIterator[Running]:
    """One sidecar per stage for all the tests here: it has to survive every one of them."""
    stage = request.param
    start = Stage.OFF if stage is Stage.OFF else Stage.SHADOW
    async with running(await postgres_database(), start, read_percent=100) as stack:
        await stack.client.set(GOOD, {"n": 1})
        if start is Stage.SHADOW:
            await stack.copy()
            await stack.stage(stage.value)
        await stack.settled()
        yield stack


@pytest_asyncio.fixture(scope="module")
async def channel(stack: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:
        yield channel


# --- asking --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bad:
    """A request, made when it is sent, and the words that its refusal has to have."""

    method: str
    data: Callable[[], Message | bytes]
    words: tuple[str, ...]
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT


async def refusal(channel: Any, method: str, data: bytes) -> tuple[Any, str]:
    """The status and the message of a call that has to fail."""
    if method in STREAMS:
        answer = channel.unary_stream(method)(data, timeout=10).read()
    else:
        answer = channel.unary_unary(method)(data, timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return caught.value.code(), caught.value.details() or ""


async def contents(stack: Running) -> tuple[Any, ...]:
    """All there is: the documents of both stores, and the rows that wait."""
    of_users = {
        document.path: document
        for document in stack.memory.dump()
        if not document.path.startswith(OWN_COLLECTION_PREFIX)
    }
    versions = await stack.sql.fetch("select path, epoch, time, live from crossfade.versions")
    rows = await stack.sql.fetch("select path from crossfade.pending where path <> ''")
    postgres = await stack.sidecar.stores[StoreName.POSTGRESQL].get([GOOD, REFUSED], timeout=5)
    return of_users, sorted(map(tuple, versions)), list(map(tuple, rows)), postgres.documents


async def refused(stack: Running, channel: grpc.aio.Channel, bad: Bad) -> str:
    before = await contents(stack)
    made = bad.data()
    data = made if isinstance(made, bytes) else made.SerializeToString()
    with structlog.testing.capture_logs() as logs:
        code, message = await refusal(channel, bad.method, data)
        await stack.settled()
    assert code is bad.code, message
    for word in bad.words:
        assert word in message
    assert SECRET not in message + str(logs)
    assert await contents(stack) == before
    assert (await stack.client.get(GOOD)).fields == {"n": 1}
    return message


# --- names ---------------------------------------------------------------------------------------

OTHER = "projects/other/databases/(default)/documents/tasks/1"
NAMES = {
    "": "even number",
    "tasks": "even number",
    "a/b/c": "even number",
    "/tasks": "empty",
    "tasks/": "empty",
    "tasks//chunks/1": "empty",
    "tasks/..": '".."',
    "./1": 'id "."',
    "tasks/__x__": "reserved",
    "__x__/1": "reserved",
    "__id7__/1": "reserved",
    "_crossfade_intents/x": "Crossfade's own",
    "_crossfade_control/default": "Crossfade's own",
    f"{DATABASE.root}/_crossfade_intents/x": "Crossfade's own",
    OTHER: DATABASE.name,
    DATABASE.full("tasks/1").replace("(default)", "second"): DATABASE.name,
    "projects/test": "COLLECTION/ID",
    DATABASE.root: "even number",
    f"tasks/{'i' * 1501}": "1500 bytes",
    f"tasks/{'é' * 751}": "1500 bytes",
}


NAMING: tuple[tuple[str, str, Callable[[str], Message]], ...] = (
    ("GetDocument", "name", lambda name: crossfade_pb2.GetDocumentRequest(name=name)),
    (
        "BatchGetDocuments",
        "names",
        lambda name: crossfade_pb2.BatchGetDocumentsRequest(names=[GOOD, name]),
    ),
    ("Commit", "writes[1]", lambda name: commit(update(REFUSED), update(name))),
    ("Commit", "writes[1]", lambda name: commit(update(REFUSED), Write(delete=name))),
)


def naming() -> Iterator[Any]:
    for name, word in NAMES.items():
        shown = name if len(name) < 60 else f"{name[:12]}…"
        for method, field, make in NAMING:
            bad = Bad(CROSSFADE + method, partial(make, name), (field, word))
            yield pytest.param(bad, id=f"{method} {shown!r}")


# --- commits -------------------------------------------------------------------------------------


def secret() -> dict[str, Any]:
    return {"marker": Value(string_value=SECRET)}


def update(path: str, **fields: Any) -> Any:
    return Write(update=document_pb2.Document(name=path, fields=secret() | fields))


def commit(*writes: Any, request_id: str = "") -> crossfade_pb2.CommitRequest:
    return crossfade_pb2.CommitRequest(writes=writes, request_id=request_id)


def nested(depth: int) -> Any:
    """`depth` maps within one another."""
    value = Value(string_value=SECRET)
    for _ in range(depth):
        value = Value(map_value=document_pb2.MapValue(fields={"m": value}))
    return value


def nested_bytes(depth: int) -> bytes:
    """The same as bytes of a request, deeper than a message can be made."""
    from crossfade.wire import field_bytes

    value = Value(string_value=SECRET).SerializeToString()
    for _ in range(depth):
        entry = field_bytes(1, b"m") + field_bytes(2, value)
        value = field_bytes(6, field_bytes(1, entry))
    entry = field_bytes(1, b"deep") + field_bytes(2, value)
    document = field_bytes(1, REFUSED.encode()) + field_bytes(2, entry)
    return field_bytes(1, field_bytes(1, document))


def array(*items: Any) -> Any:
    return Value(array_value=document_pb2.ArrayValue(values=items))


def seconds(number: int, nanos: int = 0) -> Any:
    value = Value()
    value.timestamp_value.seconds = number
    value.timestamp_value.nanos = nanos
    return value


def point(latitude: float, longitude: float) -> Any:
    value = Value()
    value.geo_point_value.latitude = latitude
    value.geo_point_value.longitude = longitude
    return value


def masked(*paths: str) -> Any:
    write = update(REFUSED)
    write.update_mask.field_paths.extend(paths)
    return write


def transformed(path: str = "n", **kind: Any) -> Any:
    write = update(REFUSED)
    write.update_transforms.add(field_path=path, **kind)
    return write


def large(size: int) -> crossfade_pb2.CommitRequest:
    """A commit of about `size` bytes, each of its documents below its own limit."""
    data = (SECRET * 70_000)[:900_000].encode()
    whole, rest = divmod(size, len(data))
    parts = [*[data] * whole, data[:rest]]
    return commit(
        *(update(f"{REFUSED}{i}", data=Value(bytes_value=part)) for i, part in enumerate(parts))
    )


def surrogate() -> bytes:
    """A text that no UTF-8 can hold, as careless encoders write it."""
    data = commit(update(REFUSED, text=Value(string_value="@@@"))).SerializeToString()
    assert b"@@@" in data
    return data.replace(b"@@@", b"\xed\xa0\x80")


ONE = Value(integer_value=1)
WITHOUT_TYPE = Value()
UNKNOWN_TYPE = Value.FromString(b"\xa2\x01\x03abc")  # field 20, which nobody here knows
COMMITS: dict[str, tuple[Callable[[], Message | bytes], tuple[str, ...]]] = {
    "empty commit": (commit, ("writes", "at least one")),
    "a write without operation": (
        lambda: commit(update(REFUSED), Write()),
        ("writes[1]", "update, delete or transform"),
    ),
    "over 1 MiB": (
        lambda: commit(
            update(
                REFUSED,
                a=Value(string_value=SECRET * 40_000),
                b=Value(bytes_value=SECRET.encode() * 40_000),
            )
        ),
        (REFUSED, "1,048,576 bytes"),
    ),
    "a value over its limit": (
        lambda: commit(update(REFUSED, huge=Value(string_value=SECRET * 75_000))),
        ("huge", "1048487 bytes"),
    ),
    "21 nested maps": (lambda: commit(update(REFUSED, deep=nested(21))), ("deep.m", "20")),
    "deeper than protobuf reads": (lambda: nested_bytes(120), ("CommitRequest", "nests deeper")),
    "an array in an array": (
        lambda: commit(update(REFUSED, outer=array(ONE, array(ONE)))),
        ("outer[1]", "an array value in an array value"),
    ),
    "no type": (lambda: commit(update(REFUSED, typeless=WITHOUT_TYPE)), ("typeless", "type")),
    "no type, deep inside": (
        lambda: commit(
            update(REFUSED, outer=array(ONE, Value(map_value={"fields": {"x": WITHOUT_TYPE}})))
        ),
        ("outer[1].x", "type"),
    ),
    "a type of tomorrow": (
        lambda: commit(update(REFUSED, tomorrow=UNKNOWN_TYPE)),
        ("tomorrow", "type"),
    ),
    "time before year 1": (
        lambda: commit(update(REFUSED, when=seconds(-62_135_596_801))),
        ("when", "years 1 to 9999"),
    ),
    "time after year 9999": (
        lambda: commit(update(REFUSED, when=seconds(253_402_300_800))),
        ("when", "years 1 to 9999"),
    ),
    "too many nanoseconds": (
        lambda: commit(update(REFUSED, when=seconds(0, 1_000_000_000))),
        ("when", "nanos"),
    ),
    "a latitude beyond the pole": (
        lambda: commit(update(REFUSED, where=point(90.5, 0))),
        ("where", "-90.0 to 90.0"),
    ),
    "no number as latitude": (
        lambda: commit(update(REFUSED, where=point(float("nan"), 0))),
        ("where", "-90.0 to 90.0"),
    ),
    "a reference to nothing": (
        lambda: commit(update(REFUSED, ref=Value(reference_value=SECRET))),
        ("ref", "full name"),
    ),
    "a field without name": (
        lambda: commit(update(REFUSED, **{"": ONE})),
        ("property.name", "empty"),
    ),
    "a reserved field name": (
        lambda: commit(update(REFUSED, __x__=ONE)),
        ("__x__", "reserved"),
    ),
    "a field name over its limit": (
        lambda: commit(update(REFUSED, **{"f" * 1_501: ONE})),
        ("fff", "1500 bytes"),
    ),
    "no UTF-8": (surrogate, ("CommitRequest",)),
    "an empty mask path": (
        lambda: commit(masked("")),
        ("writes[0].update_mask", "empty property path"),
    ),
    "a mask path with a hole": (
        lambda: commit(masked("a..b")),
        ("writes[0].update_mask", '"a..b"'),
    ),
    "a mask path with an open quote": (
        lambda: commit(masked("a.`b")),
        ("writes[0].update_mask", 'property path "a.`b"'),
    ),
    "a reserved mask path": (
        lambda: commit(masked("a.__x__")),
        ("update_mask", "reserved"),
    ),
    "a transform of nothing": (
        lambda: commit(transformed("", increment=ONE)),
        ("writes[0]", "empty property path"),
    ),
    "a transform without a kind": (lambda: commit(transformed()), ("writes[0]", "type")),
    "an unknown server value": (
        lambda: commit(transformed(set_to_server_value=9)),
        ("writes[0].set_to_server_value", "9", "REQUEST_TIME"),
    ),
    "an increment by a text": (
        lambda: commit(transformed(increment=Value(string_value=SECRET))),
        ("increment", "int64 or double"),
    ),
    "an increment by nothing": (
        lambda: commit(transformed(increment=WITHOUT_TYPE)),
        ("writes[0]", "type"),
    ),
    "a transform of a reserved field": (
        lambda: commit(transformed("__x__", increment=ONE)),
        ("__x__", "reserved"),
    ),
    "an expected time out of range": (
        lambda: commit(
            Write(delete=REFUSED, current_document={"update_time": {"seconds": 253_402_300_800}})
        ),
        ("update_time", "years 1 to 9999"),
    ),
    "over 10 MiB": (lambda: large(10 * 1_048_576 + 1), ("commit", "10485760")),
    "a long request_id": (
        lambda: commit(update(REFUSED), request_id=SECRET + "x" * 115),
        ("request_id", "129 bytes", "128 bytes"),
    ),
    "a good write before a bad one": (
        lambda: commit(update(REFUSED), update(GOOD, outer=array(array(ONE)))),
        ("outer[0]",),
    ),
    "no message": (lambda: b"\xff\xff\xff\xff", ("CommitRequest",)),
    "a Firestore CommitRequest": (
        lambda: b"\x0a" + bytes([len(DATABASE.name)]) + DATABASE.name.encode(),
        ("CommitRequest",),
    ),
}


def committing() -> Iterator[Any]:
    for what, (make, words) in COMMITS.items():
        yield pytest.param(Bad(CROSSFADE + "Commit", make, words), id=what)


# --- queries -------------------------------------------------------------------------------------


def asked(collection: str = "tasks", **parts: Any) -> Any:
    selectors = [Structured.CollectionSelector(collection_id=collection)]
    return Structured(**{"from": selectors}, **parts)


def where(op: int, value: Any, field: str = "n") -> Any:
    return Structured.Filter(
        field_filter=Structured.FieldFilter(
            field=Structured.FieldReference(field_path=field),
            op=op,
            value=value,
        )
    )


def ordered(direction: int, field: str = "n") -> Any:
    return Structured.Order(
        field=Structured.FieldReference(field_path=field),
        direction=direction,
    )


def request(query: Any, parent: str = "") -> crossfade_pb2.QueryRequest:
    return crossfade_pb2.QueryRequest(parent=parent, query=query)


Op = Structured.FieldFilter
TEXT = Value(string_value=SECRET)
QUERIES: dict[str, tuple[Callable[[], Message | bytes], tuple[str, ...]]] = {
    "nothing asked": (crossfade_pb2.QueryRequest, ("query.from.collection_id",)),
    "no collection": (lambda: request(asked("")), ("query.from.collection_id",)),
    "a path as collection": (
        lambda: request(asked("tasks/1/chunks")),
        ("query.from.collection_id", '"/"'),
    ),
    "a reserved collection": (lambda: request(asked("__x__")), ("collection_id", "reserved")),
    "our own collection": (
        lambda: request(asked("_crossfade_intents")),
        ("collection_id", "Crossfade's own"),
    ),
    "our own collection as a group": (
        lambda: request(
            Structured(
                **{
                    "from": [
                        Structured.CollectionSelector(
                            collection_id="_crossfade_intents", all_descendants=True
                        )
                    ]
                }
            )
        ),
        ("collection_id", "Crossfade's own"),
    ),
    "below our own": (
        lambda: request(asked("parts"), "_crossfade_intents/x"),
        ("Crossfade's own",),
    ),
    "two collections": (
        lambda: request(Structured(**{"from": [{"collection_id": "a"}, {"collection_id": "b"}]})),
        ("query.from", "more than one"),
    ),
    "a collection as parent": (lambda: request(asked(), "tasks"), ("parent", "even number")),
    "another database as parent": (lambda: request(asked(), OTHER), ("parent", DATABASE.name)),
    "an unknown operator": (
        lambda: request(asked(where=where(77, TEXT))),
        ("query.where.op", "77"),
    ),
    "no operator": (lambda: request(asked(where=where(0, TEXT))), ("query.where.op", "0")),
    "an unknown unary operator": (
        lambda: request(
            asked(where=Structured.Filter(unary_filter={"op": 77, "field": {"field_path": "n"}}))
        ),
        ("query.where.op", "77"),
    ),
    "an unknown composite operator": (
        lambda: request(
            asked(
                where=Structured.Filter(
                    composite_filter=Structured.CompositeFilter(
                        op=77,
                        filters=[where(5, TEXT)],
                    )
                )
            )
        ),
        ("query.where.op", "77"),
    ),
    "a filter of nothing": (
        lambda: request(asked(where=Structured.Filter())),
        ("query.where", "empty"),
    ),
    "an unknown direction": (
        lambda: request(asked(order_by=[ordered(7)])),
        ("query.order_by.direction", "7"),
    ),
    "an empty field path": (
        lambda: request(asked(where=where(Op.EQUAL, TEXT, ""))),
        ("query.where.field", "empty property path"),
    ),
    "an illegal field path": (
        lambda: request(asked(order_by=[ordered(1, "a..b")])),
        ("query.order_by", "a..b"),
    ),
    "an illegal projection": (
        lambda: request(asked(select={"fields": [{"field_path": "a."}]})),
        ("query.select", '"a."'),
    ),
    "31 values of in": (
        lambda: request(asked(where=where(Op.IN, array(*[TEXT] * 31)))),
        ("query.where", "IN", "31", "30"),
    ),
    "11 values of not-in": (
        lambda: request(asked(where=where(Op.NOT_IN, array(*[TEXT] * 11)))),
        ("query.where", "NOT_IN", "11", "10"),
    ),
    "in nothing": (lambda: request(asked(where=where(Op.IN, array()))), ("query.where", "IN")),
    "in a text": (lambda: request(asked(where=where(Op.IN, TEXT))), ("query.where", "IN")),
    "an operand without type": (
        lambda: request(asked(where=where(Op.EQUAL, WITHOUT_TYPE))),
        ("query.where", "type"),
    ),
    "an operand out of time": (
        lambda: request(asked(where=where(Op.EQUAL, seconds(253_402_300_800)))),
        ("query.where", "years 1 to 9999"),
    ),
    "a name that is a text": (
        lambda: request(asked(where=where(Op.EQUAL, TEXT, "__name__"))),
        ("query.where", "__name__"),
    ),
    "two values for one order": (
        lambda: request(asked(order_by=[ordered(1)], start_at={"values": [TEXT, TEXT]})),
        ("query.start_at", "has 2", "has 1 fields"),
    ),
    "a value for no order": (
        lambda: request(asked(end_at={"values": [TEXT]})),
        ("query.end_at", "has 1", "has 0 fields"),
    ),
    "a cursor without type": (
        lambda: request(asked(order_by=[ordered(1)], start_at={"values": [WITHOUT_TYPE]})),
        ("query", "cursor", "type"),
    ),
    "a negative limit": (
        lambda: request(asked(limit={"value": -1})),
        ("query.limit", "negative"),
    ),
    "a negative offset": (lambda: request(asked(offset=-1)), ("query.offset", "negative")),
    "no message": (lambda: b"\xff\xff\xff\xff", ("QueryRequest",)),
}


def querying() -> Iterator[Any]:
    for what, (make, words) in QUERIES.items():
        yield pytest.param(Bad(CROSSFADE + "Query", make, words), id=what)


# --- reads and the controls ----------------------------------------------------------------------

NAN, INFINITE = float("nan"), float("inf")
TRAFFIC = admin_pb2.SetTrafficRequest
OTHERS: dict[str, tuple[str, Callable[[], Message | bytes], tuple[str, ...]]] = {
    "get: no message": (CROSSFADE + "GetDocument", lambda: b"\xff\xff", ("GetDocumentRequest",)),
    "batch: no message": (
        CROSSFADE + "BatchGetDocuments",
        lambda: b"\xff\xff",
        ("BatchGetDocumentsRequest",),
    ),
    "batch: nothing": (
        CROSSFADE + "BatchGetDocuments",
        crossfade_pb2.BatchGetDocumentsRequest,
        ("names", "at least one"),
    ),
    "batch: too many": (
        CROSSFADE + "BatchGetDocuments",
        lambda: crossfade_pb2.BatchGetDocumentsRequest(names=[GOOD] * 1_001),
        ("names", "1001", "1000"),
    ),
    "stage: unknown": (
        ADMIN + "SetStage",
        lambda: admin_pb2.SetStageRequest(stage="lve"),
        ("stage", '"lve"', "dual_write", "live"),
    ),
    "stage: none": (ADMIN + "SetStage", admin_pb2.SetStageRequest, ("stage", "ramp_down")),
    "stage: negative timeout": (
        ADMIN + "SetStage",
        lambda: admin_pb2.SetStageRequest(stage="ramp_down", timeout_seconds=-1),
        ("timeout_seconds", "-1"),
    ),
    "stage: endless timeout": (
        ADMIN + "SetStage",
        lambda: admin_pb2.SetStageRequest(stage="ramp_down", timeout_seconds=NAN),
        ("timeout_seconds", "nan"),
    ),
    "stage: no message": (ADMIN + "SetStage", lambda: b"\xff\xff", ("SetStageRequest",)),
    "traffic: nothing": (
        ADMIN + "SetTraffic",
        TRAFFIC,
        ("read_percent", "shadow_rate", "at least one"),
    ),
    "traffic: 101 percent": (
        ADMIN + "SetTraffic",
        lambda: TRAFFIC(read_percent=101),
        ("read_percent", "101", "0..100"),
    ),
    "traffic: NaN": (
        ADMIN + "SetTraffic",
        lambda: TRAFFIC(read_percent=NAN),
        ("read_percent", "0..100"),
    ),
    "traffic: a negative rate": (
        ADMIN + "SetTraffic",
        lambda: TRAFFIC(shadow_rate=-0.1),
        ("shadow_rate", "0..1"),
    ),
    "traffic: an unknown collection": (
        ADMIN + "SetTraffic",
        lambda: TRAFFIC(collection="taks", read_percent=50),
        ("collection", '"taks"', '"tasks"'),
    ),
    "traffic: a path": (
        ADMIN + "SetTraffic",
        lambda: TRAFFIC(collection="tasks/1/chunks", read_percent=50),
        ("collection", '"/"'),
    ),
    "traffic: our own": (
        ADMIN + "SetTraffic",
        lambda: TRAFFIC(collection="_crossfade_intents", read_percent=50),
        ("collection", "Crossfade's own"),
    ),
    "status: no message": (ADMIN + "GetStatus", lambda: b"\xff\xff", ("GetStatusRequest",)),
}


def the_rest() -> Iterator[Any]:
    for what, (method, make, words) in OTHERS.items():
        yield pytest.param(Bad(method, make, words), id=what)


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [*naming(), *committing(), *querying(), *the_rest()])
async def test_a_bad_request_is_refused_by_name_and_leaves_nothing(stack, channel, bad):
    await refused(stack, channel, bad)


async def test_a_message_over_the_limit_of_the_transport_is_refused_by_it(stack, channel):
    over = Bad(
        CROSSFADE + "Commit",
        lambda: large(12 * 1_048_576),
        ("larger than max",),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    await refused(stack, channel, over)


async def test_a_missing_document_is_not_found_however_long_its_name(stack, channel):
    """Its name would not fit into the headers that carry a message."""
    name = f"{'ß' * 750}/{'語' * 500}/{'ß' * 750}/{'語' * 500}"
    request = crossfade_pb2.GetDocumentRequest(name=name).SerializeToString()
    code, message = await refusal(channel, CROSSFADE + "GetDocument", request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.startswith("document ßßß")


async def test_a_defect_is_internal_and_its_text_stays_inside(stack, channel, monkeypatch):
    async def broken(*_args: Any) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(Migrator, "read", broken)
    request = crossfade_pb2.GetDocumentRequest(name=GOOD).SerializeToString()
    with structlog.testing.capture_logs() as logs:
        code, message = await refusal(channel, CROSSFADE + "GetDocument", request)
    assert code is grpc.StatusCode.INTERNAL
    assert "ValueError" in message
    (line,) = logs
    assert line["rpc"] == "crossfade.v1.Crossfade/GetDocument"
    assert line["at"].startswith("test_bad_input.py:")
    assert SECRET not in message + str(logs)


async def test_unknown_methods_are_unimplemented(channel):
    for method in (CROSSFADE + "Nothing", ADMIN + "Nothing", "/crossfade.v2.Crossfade/Query"):
        assert (await refusal(channel, method, b""))[0] is grpc.StatusCode.UNIMPLEMENTED
