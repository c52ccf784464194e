"""The admin API over HTTP: alive, ready, and where the migration stands.

Read-only, and not served unless a port is set. FastAPI is imported when it is.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict

from crossfade.controls import Controls
from crossfade.errors import CrossfadeError
from crossfade_api.v1 import admin_pb2

log = structlog.get_logger(__name__)

StatusOf = Callable[[], Awaitable[admin_pb2.Status]]


def build(controls: Controls, status: StatusOf) -> Any:
    """The FastAPI application. /docs describes it."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    app = FastAPI(title="Crossfade", description="Where a migration stands.")

    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="The sidecar can serve in the present stage")
    async def readyz() -> JSONResponse:
        try:
            await controls.check_ready()
        except CrossfadeError as error:
            return JSONResponse({"status": "not ready", "reason": str(error)}, 503)
        return JSONResponse({"status": "ready", "stage": controls.default.snapshot.stage.value})

    @app.get("/status", summary="Stage, pending rows, verdicts, latencies")
    async def whole_status() -> JSONResponse:
        try:
            message = await status()
        except CrossfadeError as error:
            return JSONResponse({"status": "unavailable", "reason": str(error)}, 503)
        return JSONResponse(
            MessageToDict(
                message,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        )

    return app


class HttpServer:
    """The application on a port of its own. Raises OSError where the port is taken; the
    message names the `option` that chooses another."""

    def __init__(
        self,
        application: Any,
        host: str,
        port: int,
        option: str = "[admin] port or CROSSFADE_ADMIN__PORT",
    ) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise OSError(
                f"port {port} of {host} is taken or not allowed; choose another with "
                f"{option} (0 takes a free one)"
            ) from error
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self._application = application
        self._task: asyncio.Task[None] | None = None
        self._server: Any = None

    async def start(self) -> None:
        import uvicorn

        config = uvicorn.Config(
            self._application, log_config=None, access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        # Signals are the command's business.
        self._server.capture_signals = suppress
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        log.info("HTTP", address=self.address)

    async def stop(self) -> None:
        if self._task is not None:
            self._server.should_exit = True
            await self._task
        self._socket.close()
