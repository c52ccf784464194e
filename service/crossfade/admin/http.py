"""An application of ours on a port: what the admin API and the embedded Firestore share.

uvicorn is imported when one is started.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class HttpServer:
    """The application on a port of its own. Raises OSError where the port is taken; the
    message names the `option` that chooses another."""

    def __init__(
        self,
        application: Any,
        host: str,
        port: int,
        option: str = "--dashboard-port, [admin] port or CROSSFADE_ADMIN__PORT",
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
