"""The embedded Firestore over HTTP: what test suites ask of the official emulator between
two tests. docs/adr/0007-second-port.md says why it has a port of its own.
"""

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any, Protocol

from crossfade.admin.http import HttpServer
from crossfade.document import Database
from crossfade.errors import CrossfadeError


class Resettable(Protocol):
    """A store of one database."""

    database: Database

    def reset(self) -> None:
        """Deletes every document. Raises CrossfadeError."""


def build(stores: Iterable[Resettable]) -> Any:
    """The FastAPI application. /docs describes it."""
    from fastapi import Depends, FastAPI, Header, HTTPException, Request
    from fastapi.responses import JSONResponse, PlainTextResponse

    def no_page(origin: Annotated[str | None, Header()] = None) -> None:
        """Else any page in the developer's browser could empty the database."""
        if origin is not None:
            raise HTTPException(403, "not for web pages")

    app = FastAPI(title="Embedded Firestore", description="As the official emulator has it.")

    @app.exception_handler(CrossfadeError)
    async def refuse(_: Request, error: CrossfadeError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    @app.get("/", summary="It is there", response_class=PlainTextResponse)
    async def alive() -> str:
        return "Ok\n"

    # Coroutines, so that they run between two commits and not beside one.
    @app.delete(
        "/emulator/v1/projects/{project}/databases/{database}/documents",
        summary="Deletes every document of a database",
        dependencies=[Depends(no_page)],
    )
    async def clear(project: str, database: str) -> dict[str, str]:
        wanted = Database(project, database)
        for store in stores:
            if store.database == wanted:
                store.reset()
        return {}

    @app.post(
        "/reset",
        summary="Deletes every document of every database",
        response_class=PlainTextResponse,
        dependencies=[Depends(no_page)],
    )
    async def clear_all() -> str:
        for store in stores:
            store.reset()
        return "Resetting...\n"

    return app


class EmulatorServer(HttpServer):
    """Listens from the start; the application is made when the first caller comes.

    Importing FastAPI takes more than half as long as all the rest of the start,
    and most runs never ask for it.
    """

    def __init__(self, stores: Iterable[Resettable], host: str, port: int) -> None:
        super().__init__(None, host, port, option="--http-port")
        self._stores = stores
        self._opening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._socket.setblocking(False)
        self._socket.listen()
        asyncio.get_running_loop().add_reader(self._socket, self._open)

    def _open(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._opening = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        self._application = await asyncio.to_thread(build, self._stores)
        await super().start()

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._opening is not None:
            await self._opening
        await super().stop()
