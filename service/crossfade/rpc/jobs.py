"""crossfade.v1.Jobs: what works over all documents, seen and stopped from anywhere."""

import grpc

from crossfade import wire
from crossfade.call import Call
from crossfade.document import to_micros
from crossfade.errors import FailedPrecondition, InvalidArgument
from crossfade.rpc.server import Unary, Wrapper, parse
from crossfade.stores.postgres.jobs import Job, Jobs
from crossfade_api.v1 import jobs_pb2

SERVICE = "crossfade.v1.Jobs"
DEFAULT_LIMIT, MAX_LIMIT = 20, 1_000
SOMEBODY = "somebody over the admin API"


class JobMethods:
    """The methods, from request bytes to reply bytes."""

    def __init__(self, jobs: Jobs | None) -> None:
        self._jobs = jobs

    async def list(self, data: bytes, _: Call) -> bytes:
        request = parse(jobs_pb2.ListJobsRequest, data)
        limit = request.limit or DEFAULT_LIMIT
        if not 0 < limit <= MAX_LIMIT:
            raise InvalidArgument(f"limit: {limit} is outside 1..{MAX_LIMIT}")
        found = await self._needs().list(request.kind or None, limit)
        return jobs_pb2.ListJobsReply(jobs=map(job_message, found)).SerializeToString()

    async def control(self, data: bytes, _: Call) -> bytes:
        request = parse(jobs_pb2.ControlJobRequest, data)
        jobs, who = self._needs(), request.who or SOMEBODY
        reason = f"by {who}" + (f": {request.reason}" if request.reason else "")
        if request.action == jobs_pb2.JOB_ACTION_PAUSE:
            job = await jobs.pause(request.id, reason)
        elif request.action == jobs_pb2.JOB_ACTION_RESUME:
            job = await jobs.resume(request.id)
        elif request.action == jobs_pb2.JOB_ACTION_CANCEL:
            job = await jobs.cancel(request.id, reason)
        else:
            raise InvalidArgument("action: pause, resume or cancel must be given")
        return job_message(job).SerializeToString()

    def _needs(self) -> Jobs:
        if self._jobs is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL, which keeps the jobs")
        return self._jobs


def unary(methods: JobMethods) -> dict[str, Unary]:
    return {"ListJobs": methods.list, "ControlJob": methods.control}


def handler(methods: JobMethods, wrap: Wrapper) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {name: wrap.unary(f"{SERVICE}/{name}", method) for name, method in unary(methods).items()},
    )


def job_message(job: Job) -> jobs_pb2.Job:
    shown = jobs_pb2.Job(
        id=job.id,
        kind=job.kind,
        group=job.group,
        collections=job.collections,
        state=job.state.value,
        reason=job.reason,
        who=job.who,
        partitions=job.partitions,
        partitions_done=job.partitions_done,
        processes=job.processes,
        estimate=job.estimate,
        documents=job.documents,
        letters=job.letters,
        rate=job.options.get("rate"),
        counts=[
            jobs_pb2.CollectionCounts(collection=name, counts=counts)
            for name, counts in sorted(job.counts.items())
        ],
        pages=job.pages,
        retries=job.retries,
        waited=job.waited,
    )
    wire.encode_time(to_micros(job.begun_at), shown.begun_at)
    if job.ended_at is not None:
        wire.encode_time(to_micros(job.ended_at), shown.ended_at)
    return shown
