"""The bare handler: a gRPC server that answers every call of a method with the same bytes.

The same library, event loop and options as the embedded Firestore's server, and nothing
else: it does not look at the request.

    python -m loadtests.firestore.bare FILE

The file is JSON: the hexadecimal answers of each method, by its name.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from loadtests.firestore.messages import STREAMS

READY = "bare "


def unary(answer: bytes) -> Any:
    async def handle(_: bytes, __: Any) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(answers: list[bytes]) -> Any:
    async def handle(_: bytes, __: Any) -> AsyncIterator[bytes]:
        for answer in answers:
            yield answer

    return grpc.unary_stream_rpc_method_handler(handle)


async def main(recorded: dict[str, list[str]]) -> None:
    methods = {}
    for name, texts in recorded.items():
        answers = [bytes.fromhex(text) for text in texts]
        methods[name] = streaming(answers) if name in STREAMS else unary(answers[0])
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    service = grpc.method_handlers_generic_handler("google.firestore.v1.Firestore", methods)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{READY}127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(json.loads(Path(sys.argv[1]).read_text())))
