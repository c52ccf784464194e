"""The admin API and the dashboard: put together, and served. FastAPI is imported when it is."""

import asyncio
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crossfade.admin.board import Board
from crossfade.admin.desk import Desk
from crossfade.admin.guard import SameOrigin
from crossfade.admin.history import History
from crossfade.admin.http import HttpServer
from crossfade.admin.parts import Parts
from crossfade.admin.problems import CODES, Problem, problem_of, problem_of_validation
from crossfade.errors import CrossfadeError

STATIC = Path(__file__).parent / "static"
PAIRED_SECONDS = 600.0
SHOWN_JOBS, SHOWN_VALIDATIONS = 5, 3
SHOWN_AUDIT, SHOWN_MISMATCHES, SHOWN_LETTERS = 30, 50, 50
DESCRIPTION = """Where a migration stands, and the controls that move it: what `crossfade stage`,
`traffic`, `ramp`, `rollback`, `mismatches`, `dead-letters` and `audit` do, over HTTP.

Errors are of one shape, and their status follows from the code: INVALID_ARGUMENT 400,
UNAUTHENTICATED 401, PERMISSION_DENIED 403, NOT_FOUND 404, FAILED_PRECONDITION, ABORTED and
ALREADY_EXISTS 409, RESOURCE_EXHAUSTED 429, INTERNAL and UNKNOWN 500, UNIMPLEMENTED 501,
UNAVAILABLE 503, DEADLINE_EXCEEDED 504."""


def build(parts: Parts, desk: Desk, board: Board) -> Any:
    """The application. /api/v1/openapi.json describes it."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.staticfiles import StaticFiles

    from crossfade.admin import routes

    app = FastAPI(
        title="Crossfade",
        version=version("crossfade"),
        description=DESCRIPTION,
        openapi_url=f"{routes.PREFIX}/openapi.json",
        docs_url=None,  # the pages that FastAPI has come from a CDN
        redoc_url=None,
    )

    def answer(status: int, body: Problem, headers: Any = None) -> JSONResponse:
        if status == 401:
            headers = {"www-authenticate": "Bearer"} | dict(headers or {})
        return JSONResponse(body.model_dump(), status, headers)

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        return answer(*problem_of(error))

    async def refuse_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(400, problem_of_validation(list(error.errors())))

    async def refuse_path(_: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "UNKNOWN")
        body = Problem(code=code, message=str(error.detail).lower(), field=None)
        return answer(error.status_code, body, error.headers)

    handlers: dict[Any, Any] = {
        CrossfadeError: refuse,
        RequestValidationError: refuse_request,
        HTTPException: refuse_path,
        Exception: refuse,
    }
    for kind, handle in handlers.items():
        app.add_exception_handler(kind, handle)
    app.include_router(routes.open_routes(parts))
    app.include_router(routes.router(parts, desk, board))
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return SameOrigin(app, parts.hosts)


class AdminServer(HttpServer):
    """The admin API on a port of its own, and what it remembers for the plots."""

    def __init__(self, parts: Parts, host: str, port: int) -> None:
        super().__init__(None, host, port)
        self._parts = parts
        self._history = History(parts.telemetry)
        self._desk = Desk(parts, self._history)
        self.board = Board(_sections(self._desk), self._history)
        self._history.added = self.board.wake
        self._remembering: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._application = await asyncio.to_thread(build, self._parts, self._desk, self.board)
        self._remembering = asyncio.create_task(self._history.run())
        await super().start()

    async def stop(self) -> None:
        if self._remembering is not None:
            self._remembering.cancel()
            with suppress(asyncio.CancelledError):
                await self._remembering
        # Streams end first: the server waits for them.
        await self.board.close()
        await super().stop()


def _sections(desk: Desk) -> dict[str, Any]:
    """The parts of the dashboard's state."""

    def dumped(ask: Any) -> Any:
        async def section() -> Any:
            return (await ask()).model_dump(mode="json")

        return section

    return {
        "stand": desk.stand,
        "latency": desk.last_minute,
        "keeping_up": desk.keeping_up,
        "paired": dumped(partial(desk.latency, "", "", PAIRED_SECONDS, 0.0)),
        "ramps": dumped(desk.ramps),
        "mismatches": dumped(partial(desk.mismatches, "", "", None, SHOWN_MISMATCHES)),
        "dead_letters": dumped(partial(desk.dead_letters, "", "", SHOWN_LETTERS)),
        "drift": dumped(partial(desk.drift, schema=False)),
        "jobs": dumped(partial(desk.jobs, "", SHOWN_JOBS)),
        "validations": dumped(partial(desk.validations, "", SHOWN_VALIDATIONS)),
        "audit": dumped(partial(desk.audit, "", SHOWN_AUDIT)),
    }
