"""The fast bare handler: as little as can stand between a gRPC call and a row by key.

Its own connections, last in first out, each with its prepared statement; the
sidecar's generated decoder; the reply spliced. No deadline, no route, no metrics, no
token, no error of its own: what a sidecar that did nothing else would cost.

    python -m loadtests.bench.bare DSN
"""

import asyncio
import sys
from typing import Any

import asyncpg
import grpc.aio
import orjson
import uvloop

from crossfade.stores.postgres.decoder import make_decoder
from crossfade.wire import field_bytes
from crossfade_api.v1 import crossfade_pb2, document_pb2
from loadtests.bench.sql import MAPPING

READY = "bare "
LANES = 8
_ROOT = "projects/bench/databases/(default)/documents/"


class Rows:
    """Rows of the mapped table by key."""

    def __init__(self) -> None:
        self._free: list[Any] = []
        self._waiting: list[asyncio.Future[Any]] = []
        self.decode = make_decoder(MAPPING)

    async def open(self, dsn: str) -> None:
        columns = ", ".join(f'"{entry.column}"' for entry in MAPPING.columns)
        table = f'"{MAPPING.table.schema}"."{MAPPING.table.name}"'
        text = (
            f"select id, {columns}, remainder, create_time, update_time from {table} where id = $1"
        )
        for _ in range(LANES):
            connection = await asyncpg.connect(dsn)
            await connection.set_type_codec(
                "jsonb",
                schema="pg_catalog",
                encoder=orjson.dumps,
                decoder=lambda raw: orjson.loads(memoryview(raw)[1:]),
                format="binary",
            )
            statement = await connection.prepare(text)
            await connection.execute("select 1")  # ends the transaction that prepare leaves open
            self._free.append(statement)

    async def fetch(self, key: str) -> Any:
        """None where there is none."""
        if self._free:
            statement = self._free.pop()
        else:
            waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            statement = await waiter
        try:
            return await statement.fetchrow(key)
        finally:
            if self._waiting:
                self._waiting.pop(0).set_result(statement)
            else:
                self._free.append(statement)


class Handler:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def get(self, request: Any, context: Any) -> bytes:
        row = await self._rows.fetch(request.name.rpartition("/")[2])
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such document")
        document = document_pb2.Document(name=_ROOT + request.name)
        self._rows.decode(row, document)
        return field_bytes(1, document.SerializeToString())


async def main(dsn: str) -> None:
    rows = Rows()
    await rows.open(dsn)
    handler = Handler(rows)
    method: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        handler.get, request_deserializer=crossfade_pb2.GetDocumentRequest.FromString
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler(
        "crossfade.v1.Crossfade", {"GetDocument": method}
    )
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{READY}127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
