"""crossfade.v1.Admin: what shadow reads found to differ, and what differs now."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import orjson

from crossfade import wire
from crossfade.call import Call
from crossfade.comparing import Comparing
from crossfade.controls import Controls
from crossfade.document import Database, check_document_path, check_id, collection_id
from crossfade.errors import FailedPrecondition, InvalidArgument
from crossfade.repairs import Repairs
from crossfade.rpc.server import Unary, Wrapper, check_visible, parse
from crossfade.samples import Mismatch, Redactor, version_of
from crossfade.stores.postgres.mismatches import Mismatches
from crossfade.verdict import Offer
from crossfade_api.v1 import admin_pb2

SERVICE = "crossfade.v1.Admin"
LIST_TIMEOUT = 5.0
DEFAULT_LIMIT = 100
MAX_LIMIT = 1_000


class MismatchMethods:
    """The methods, from request bytes to reply bytes."""

    def __init__(
        self,
        controls: Controls,
        database: Database,
        comparer: Comparing,
        redactor: Redactor,
        repairs: Repairs,
        table: Mismatches | None,
    ) -> None:
        self._controls = controls
        self._database = database
        self._comparer = comparer
        self._redactor = redactor
        self._repairs = repairs
        self._table = table

    async def list(self, data: bytes, call: Call) -> bytes:
        request = parse(admin_pb2.ListMismatchesRequest, data)
        limit = request.limit or DEFAULT_LIMIT
        if not 0 < limit <= MAX_LIMIT:
            raise InvalidArgument(f"limit: {limit} is outside 1..{MAX_LIMIT}")
        if request.collection:
            check_id(request.collection, "collection", numeric=False)
        if self._table is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL, which keeps mismatches")
        since = wire.decode_time(request.since, "since") if request.HasField("since") else 0
        found = await self._table.list(
            collection=request.collection or None,
            field=request.field or None,
            since=since,
            limit=limit,
            timeout=min(call.left(), LIST_TIMEOUT),
        )
        reply = admin_pb2.ListMismatchesReply(mismatches=map(_mismatch, found))
        return reply.SerializeToString()

    async def explain(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.ExplainMismatchRequest, data)
        path = check_document_path(self._database.relative(request.name, "name"), "name")
        check_visible(path, "name")
        collection = collection_id(path)
        snapshot = self._controls.snapshot_of(collection)
        if not snapshot.rules.mirrored:
            raise FailedPrecondition(
                f"stage {snapshot.stage} writes no mirror: there is nothing to compare"
            )
        asked = Offer(
            collection=collection,
            operation="get",
            authority=snapshot.authority,
            answered=snapshot.authority,
            epoch=snapshot.epoch,
            stage=snapshot.stage.value,
            asked=(path,),
            documents=(),
            link=None,
        )
        found = await self._comparer.examine(path, asked)
        reply = admin_pb2.Explanation(
            path=path,
            verdict=found.verdict.value,
            authority=snapshot.authority.value,
            firestore=_held(version_of(found.firestore)),
            postgresql=_held(version_of(found.postgres)),
            differences=_differences(self._redactor.differences(collection, found.differences)),
            given_up=self._repairs.given_up(path),
        )
        return reply.SerializeToString()


def unary(mismatches: MismatchMethods) -> dict[str, Unary]:
    return {"ListMismatches": mismatches.list, "ExplainMismatch": mismatches.explain}


def methods(
    mismatches: MismatchMethods, wrap: Wrapper
) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    return {
        name: wrap.unary(f"{SERVICE}/{name}", method) for name, method in unary(mismatches).items()
    }


def _mismatch(found: Mismatch) -> admin_pb2.Mismatch:
    return admin_pb2.Mismatch(
        collection=found.collection,
        signature=found.signature,
        verdict=found.verdict,
        operation=found.operation,
        path=found.path,
        fields=found.fields,
        count=found.count,
        first=_sample(found.first),
        latest=_sample(found.latest),
        given_up=found.given_up,
    )


def _sample(body: Mapping[str, Any]) -> admin_pb2.MismatchSample:
    sample = admin_pb2.MismatchSample(
        path=body["path"],
        trace_id=body["trace_id"] or "",
        firestore=_held(body["versions"]["firestore"]),
        postgresql=_held(body["versions"]["postgresql"]),
        differences=_differences(body["differences"]),
        **body["route"],
    )
    wire.encode_time(body["at"], sample.at)
    return sample


def _held(version: Mapping[str, Any] | None) -> admin_pb2.HeldVersion | None:
    return None if version is None else admin_pb2.HeldVersion(**version)


def _differences(found: Sequence[Mapping[str, Any]]) -> list[admin_pb2.FieldDifference]:
    return [
        admin_pb2.FieldDifference(
            field=each["field"],
            kind=each["kind"],
            authority=_shown(each["authority"]),
            mirror=_shown(each["mirror"]),
        )
        for each in found
    ]


def _shown(value: Mapping[str, Any] | None) -> admin_pb2.ShownValue | None:
    if value is None:
        return None
    shown = admin_pb2.ShownValue(
        type=value["type"], length=value.get("length"), hash=value.get("hash", "")
    )
    if "value" in value:
        shown.value = orjson.dumps(value["value"]).decode()
    return shown
