"""The paths of the admin API: what each takes, gives, and is called. What they do is desk.py's."""

import asyncio
from typing import Annotated, Any, Literal

from crossfade.admin import models
from crossfade.admin.board import Board
from crossfade.admin.desk import Desk
from crossfade.admin.parts import Parts
from crossfade.admin.problems import Problem

PREFIX = "/api/v1"
LONGEST_NAME, LONGEST_PATH = 1_500, 7_000
"""Characters: more than a collection's id, and than a document's name, may have."""


def router(parts: Parts, desk: Desk, board: Board) -> Any:
    """Everything below /api/v1."""
    from fastapi import APIRouter, Depends, Path, Query
    from fastapi.responses import StreamingResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

    bearer = HTTPBearer(
        auto_error=False, description="A token with the role admin, where tokens are set."
    )
    Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]  # noqa: N806

    def header_of(given: HTTPAuthorizationCredentials | None) -> str | None:
        return None if given is None else f"{given.scheme} {given.credentials}"

    async def admitted(given: Credentials) -> str:
        return parts.admit(header_of(given))

    Caller = Annotated[str, Depends(admitted)]  # noqa: N806
    Collection = Annotated[  # noqa: N806
        str,
        Query(
            max_length=LONGEST_NAME,
            pattern=models.NO_NUL,
            description="A collection id; empty: all.",
        ),
    ]
    Limit = Annotated[int, Query(ge=1, le=1_000)]  # noqa: N806
    Group = Annotated[  # noqa: N806
        str, Query(max_length=200, description="A group of collections; empty: default.")
    ]
    api = APIRouter(
        prefix=PREFIX,
        dependencies=[Depends(admitted)],
        responses={"default": {"model": Problem, "description": "Refused, or it failed"}},
    )

    def who(asked: Any, caller: str) -> str:
        """For the audit trail: a token's name cannot be made up, so it stands first."""
        if not caller:
            return str(asked.who)
        return f"{caller} ({asked.who})" if asked.who else caller

    # --- reading

    @api.get("/status", tags=["status"], summary="Where the migration stands")
    async def status(group: Group = "") -> models.Status:
        return await desk.status(group)

    @api.get("/stages", tags=["stages"], summary="The stages, and which one is now")
    async def stages(group: Group = "") -> models.Stages:
        return await desk.stages(group)

    @api.get("/traffic", tags=["traffic"], summary="Percents and shadow rates")
    async def traffic() -> models.TrafficList:
        return await desk.traffic()

    @api.get("/ramps", tags=["ramps"], summary="The ramps, and what each waits for")
    async def ramps() -> models.Ramps:
        return await desk.ramps()

    @api.get("/mismatches", tags=["mismatches"], summary="What was found to differ, latest first")
    async def mismatches(
        collection: Collection = "",
        field: Annotated[
            str,
            Query(
                max_length=LONGEST_NAME,
                pattern=models.NO_NUL,
                description="A field path; those within it, too.",
            ),
        ] = "",
        since: Annotated[models.Moment | None, Query(description="Only those met since.")] = None,
        limit: Limit = 100,
    ) -> models.Mismatches:
        return await desk.mismatches(collection, field, since, limit)

    @api.get(
        "/mismatches/explain",
        tags=["mismatches"],
        summary="Reads one document from both stores now, and says what differs",
    )
    async def explain(
        name: Annotated[
            str,
            Query(
                max_length=LONGEST_PATH,
                description="A document's path.",
                examples=["tasks/1"],
            ),
        ],
    ) -> models.Explanation:
        return await desk.explain(name)

    @api.get("/dead-letters", tags=["dead letters"], summary="What could not be copied, by path")
    async def dead_letters(
        collection: Collection = "",
        after: Annotated[
            str,
            Query(
                max_length=LONGEST_PATH,
                description="The last path of the page before.",
            ),
        ] = "",
        limit: Limit = 100,
    ) -> models.DeadLetters:
        return await desk.dead_letters(collection, after, limit)

    @api.get("/drift", tags=["drift"], summary="What is not as the plan has it")
    async def drift(
        schema: Annotated[
            bool, Query(description="Also compares the database with the mapping: seconds.")
        ] = False,
    ) -> models.Drift:
        return await desk.drift(schema=schema)

    @api.get("/jobs", tags=["jobs"], summary="Backfills and validations, the latest first")
    async def jobs(
        kind: Annotated[
            Literal["", "backfill", "validate"], Query(description="Empty: both.")
        ] = "",
        limit: Limit = 20,
    ) -> models.Jobs:
        return await desk.jobs(kind, limit)

    @api.get(
        "/validations",
        tags=["jobs"],
        summary="What validations found, the latest first, and which one is the certificate",
    )
    async def validations(
        group: Annotated[
            str,
            Query(
                max_length=200,
                pattern=models.NO_NUL,
                description="A group of collections; empty: all.",
            ),
        ] = "",
        limit: Annotated[int, Query(ge=1, le=50)] = 10,
    ) -> models.Validations:
        return await desk.validations(group, limit)

    @api.get("/audit", tags=["audit"], summary="Who changed what, latest first")
    async def audit(collection: Collection = "", limit: Limit = 100) -> models.Audit:
        return await desk.audit(collection, limit)

    @api.get(
        "/latency",
        tags=["latency"],
        summary="How long both stores took for the same reads, as this sidecar has timed them",
    )
    async def latency(
        collection: Collection = "",
        operation: Annotated[
            Literal["", "get", "query", "aggregate"], Query(description="Empty: each.")
        ] = "",
        since_seconds: Annotated[
            float, Query(ge=0, le=3600, description="The last so many; 0: since the start.")
        ] = 0.0,
        step_seconds: Annotated[
            float, Query(ge=0, le=3600, description="Also the course, in parts of so many.")
        ] = 0.0,
    ) -> models.Latency:
        return await desk.latency(collection, operation, since_seconds, step_seconds)

    @api.get(
        "/latency/history",
        tags=["latency"],
        summary="All reads of each store over the last 15 minutes, compared or not",
    )
    async def latency_history(collection: Collection = "") -> models.LatencyHistory:
        return desk.latency_history(collection)

    @api.get("/config", tags=["config"], summary="The settings in force; secrets are hidden")
    async def config() -> models.Config:
        return await desk.config()

    @api.get(
        "/events",
        tags=["events"],
        summary="The dashboard's state as server-sent events, until the caller goes",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(given: Credentials) -> StreamingResponse:
        stream = await board.stream(lambda: parts.admit(header_of(given)))
        return StreamingResponse(stream, media_type="text/event-stream")

    # --- changing

    @api.post("/stages/set", tags=["stages"], summary="To another stage, if its checks pass")
    async def set_stage(asked: models.SetStage, caller: Caller) -> models.StageAnswer:
        try:
            return await desk.set_stage(asked, who(asked, caller))
        finally:
            board.wake()

    @api.post(
        "/stages/rollback", tags=["stages"], summary="Back: Firestore decides and answers reads"
    )
    async def rollback(asked: models.RollBack, caller: Caller) -> models.StageAnswer:
        try:
            return await desk.roll_back(asked, who(asked, caller))
        finally:
            board.wake()

    @api.put("/traffic", tags=["traffic"], summary="Percent and shadow rate of a collection")
    async def set_traffic(asked: models.SetTraffic, caller: Caller) -> models.TrafficAnswer:
        try:
            return await desk.set_traffic(asked, who(asked, caller))
        finally:
            board.wake()

    @api.post("/ramps", tags=["ramps"], summary="Starts a ramp")
    async def start_ramp(asked: models.StartRamp, caller: Caller) -> models.Ramp:
        try:
            return await desk.start_ramp(asked, who(asked, caller))
        finally:
            board.wake()

    @api.post("/ramps/stop", tags=["ramps"], summary="Leaves the reads where they are")
    async def stop_ramp(asked: models.StopRamp, caller: Caller) -> models.Ramps:
        try:
            return await desk.stop_ramp(asked, who(asked, caller))
        finally:
            board.wake()

    @api.post("/jobs/{job}/{action}", tags=["jobs"], summary="Pauses, resumes or cancels one")
    async def control_job(
        job: Annotated[int, Path(ge=1, le=2**63 - 1)],
        action: Literal["pause", "resume", "cancel"],
        asked: models.ControlJob,
        caller: Caller,
    ) -> models.Job:
        try:
            return await desk.control_job(job, action, asked, who(asked, caller))
        finally:
            board.wake()

    @api.post("/dead-letters/retry", tags=["dead letters"], summary="Has them tried again")
    async def retry(asked: models.RetryDeadLetters) -> models.Retried:
        try:
            return await desk.retry_dead_letters(asked)
        finally:
            board.wake()

    return api


def open_routes(parts: Parts) -> Any:
    """What probes ask, and what Prometheus does."""
    from fastapi import APIRouter, Depends, Request, Response
    from fastapi.responses import JSONResponse

    from crossfade.errors import CrossfadeError

    rest = APIRouter()

    @rest.get("/healthz", tags=["probes"], summary="The process is alive")
    async def healthz() -> models.Alive:
        return models.Alive()

    @rest.get(
        "/readyz",
        tags=["probes"],
        summary="The sidecar can serve in the present stage",
        response_model=models.Ready,
        responses={503: {"model": models.Ready, "description": "Not now"}},
    )
    async def readyz() -> JSONResponse:
        try:
            await parts.controls.check_ready()
        except CrossfadeError as error:
            found = models.Ready(status="not ready", reason=str(error))
            return JSONResponse(found.model_dump(exclude_none=True), 503)
        found = models.Ready(status="ready", stage=parts.controls.default.snapshot.stage.value)
        return JSONResponse(found.model_dump(exclude_none=True))

    async def admitted(request: Request) -> None:
        parts.admit_scraper(request.headers.get("authorization"))

    scrape: Any = None
    loading = asyncio.Lock()

    @rest.get(
        "/metrics",
        tags=["metrics"],
        summary="For Prometheus",
        dependencies=[Depends(admitted)],
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            "default": {"model": Problem, "description": "Refused"},
        },
    )
    async def metrics(request: Request) -> Response:
        nonlocal scrape
        async with loading:
            if scrape is None:
                scrape = await asyncio.to_thread(parts.telemetry.scraped)
        text, kind = await asyncio.to_thread(scrape.text, request.headers.get("accept", ""))
        return Response(text, media_type=kind)

    return rest
