"""violet.v1.Tasks: what one task is, and lists of them."""

from typing import Any

from crossfade.call import Call
from crossfade.document import Document, Fields
from crossfade.errors import FailedPrecondition, InvalidArgument
from crossfade.query import Filter, Query
from crossfade.transactions import Transaction
from crossfade.wire import decode_time, encode_value
from crossfade.write import Write
from crossfade_api.v1 import violet_pb2 as pb
from violet.operations import content, messages, pages, responses, tasks
from violet.operations.data import (
    Data,
    among,
    carry_out,
    contains,
    equals,
    given,
    matching,
    path_in,
    statuses,
    uid_of,
)
from violet.operations.decision import Decision, drawn, found
from violet.operations.methods.putting import put

MOST_BELONGINGS = 10_000
"""Documents that a task's deletion takes along."""
MOST_STATUSES = 50


class TaskMethods:
    def __init__(self, data: Data) -> None:
        self.data = data

    # --- one task -------------------------------------------------------------------------------

    async def create_task(self, request: pb.CreateTaskRequest, call: Call) -> pb.Changed:
        task_id = request.task_id or drawn(request.request_id or None, "task")
        path = path_in("tasks", task_id, "task_id")
        fields = messages.fields_of(request.fields)

        async def work(transaction: Transaction) -> pb.Changed:
            if transaction.replayed:
                return self._shown(path, await transaction.get(path))
            after = carry_out(transaction, tasks.create(task_id, fields, transaction.now))
            return messages.changed(self.data.database, path, after, replayed=False)

        return await self.data.run(work, call, request.request_id)

    async def get_task(self, request: pb.GetRequest, call: Call) -> bytes:
        return messages.found(await self.data.stored(path_in("tasks", request.id, "id"), call))

    async def update_task(self, request: pb.UpdateTaskRequest, call: Call) -> pb.TaskChanged:
        path = path_in("tasks", request.task_id, "task_id")
        update = messages.update_of(request, path, self.data.database)
        version = None
        if request.HasField("update_time"):
            version = decode_time(request.update_time, "update_time")
        return await self._change(update, request.request_id, call, version=version)

    async def set_task_status(self, request: pb.SetTaskStatusRequest, call: Call) -> pb.TaskChanged:
        path = path_in("tasks", request.task_id, "task_id")
        if not request.status:
            raise InvalidArgument("status: it is empty")
        status: Any = {"status": request.status}
        update = messages.update_of(request, path, self.data.database, status)
        asked = frozenset(request.from_statuses)
        return await self._change(update, request.request_id, call, asked)

    async def _change(
        self,
        update: Write,
        request_id: str,
        call: Call,
        from_statuses: frozenset[str] = frozenset(),
        version: int | None = None,
    ) -> pb.TaskChanged:
        path = update.path

        async def work(transaction: Transaction) -> pb.TaskChanged:
            task = await transaction.get(path)
            if transaction.replayed:
                return self._task_shown(path, task)
            task = found(task, path)
            if version is not None and task.update_time != version:
                raise FailedPrecondition(f"document {path}: it has changed since that update_time")
            ending = tasks.ending(task, tasks.changed(task, update, transaction.now))
            known = await statuses(transaction, ending)
            decision = tasks.change(task, update, known, transaction.now, from_statuses)
            return self._task_changed(path, carry_out(transaction, decision))

        return await self.data.run(work, call, request_id)

    async def drop_failed_responses(self, request: pb.TaskRequest, call: Call) -> pb.TaskChanged:
        path = path_in("tasks", request.task_id, "task_id")

        async def work(transaction: Transaction) -> pb.TaskChanged:
            task = await transaction.get(path)
            if transaction.replayed:
                return self._task_shown(path, task)
            decision = responses.drop_failed(found(task, path), transaction.now)
            after = carry_out(transaction, decision)
            return self._task_changed(path, tasks.Changed(after))

        return await self.data.run(work, call, request.request_id)

    async def get_task_completion(self, request: pb.GetRequest, call: Call) -> pb.TaskCompletion:
        path = path_in("tasks", request.id, "id")
        task = found(await self.data.find(path, call), path)
        completion = responses.completion(task.fields)
        reply = pb.TaskCompletion(
            status=completion.status,
            assigned_miners=completion.assigned,
            responded=completion.responded,
            missing=completion.missing,
            responses_by_status=completion.by_status,
            all_responded=bool(completion.assigned) and not completion.missing,
        )
        if completion.best is not None:
            encode_value(completion.best, reply.best_response)
        return reply

    # --- the end of a task ----------------------------------------------------------------------

    async def delete_task(self, request: pb.TaskRequest, call: Call) -> pb.Deleted:
        path = path_in("tasks", request.task_id, "task_id")

        async def work(transaction: Transaction) -> pb.Deleted:
            if transaction.replayed:
                return pb.Deleted(existed=True, replayed=True)
            task = await transaction.get(path)
            belongings = await self._belongings(transaction, request.task_id)
            known = await statuses(transaction, [] if task is None else tasks.still_held(task))
            decision = tasks.delete(task, belongings, known, transaction.now)
            return pb.Deleted(existed=carry_out(transaction, decision))

        return await self.data.run(work, call, request.request_id)

    async def _belongings(self, transaction: Transaction, task_id: str) -> list[str]:
        """The paths of the documents that go with a task."""
        of_task = equals("task_id", task_id)
        queries = [
            matching("miner_responses", of_task),
            matching("task_assignments", of_task),
            Query(parent=f"tasks/{task_id}", collection="audio_chunks"),
        ]
        paths: list[str] = []
        for query in queries:
            paths += [document.path for document in await transaction.find(query)]
        if len(paths) > MOST_BELONGINGS:
            raise FailedPrecondition(
                f"document tasks/{task_id}: over {MOST_BELONGINGS} documents belong to it"
            )
        return paths

    async def archive_task(self, request: pb.TaskRequest, call: Call) -> pb.Changed:
        path = path_in("tasks", request.task_id, "task_id")
        archive = path_in("archived_tasks", request.task_id, "task_id")

        async def work(transaction: Transaction) -> pb.Changed:
            task, archived = await transaction.get_all([path, archive])
            if transaction.replayed:
                return self._shown(archive, archived)
            task = found(task, path)
            known = await statuses(transaction, tasks.still_held(task))
            decision = tasks.archive(task, archived, known, transaction.now)
            after = carry_out(transaction, decision)
            return messages.changed(self.data.database, archive, after, replayed=False)

        return await self.data.run(work, call, request.request_id)

    async def put_final_result(self, request: pb.PutRequest, call: Call) -> pb.Changed:
        path = path_in("final_results", request.id, "id")
        update = messages.put_of(request, path, self.data.database)

        def decide(result: Document | None, moment: int) -> Decision[Fields]:
            return content.store(result, update, "task_id", moment, merge=request.merge)

        return await put(self.data, path, decide, call, request.request_id)

    async def get_final_result(self, request: pb.GetRequest, call: Call) -> bytes:
        path = path_in("final_results", request.id, "id")
        return messages.found(await self.data.stored(path, call))

    # --- lists and counts -----------------------------------------------------------------------

    async def list_tasks(self, request: pb.ListTasksRequest, call: Call) -> pb.Documents:
        query = matching(
            "tasks",
            among("status", request.statuses),
            self._miner(request),
            contains("validators_seen", request.seen_by) if request.seen_by else None,
            given("user_id", request.user_id),
        )
        size = pages.size_of(request.page_size)
        return messages.documents(*await self.data.page(query, size, request.page_token, call))

    async def count_tasks(self, request: pb.CountTasksRequest, call: Call) -> pb.Count:
        status = among("status", request.statuses or tasks.OPEN)
        query = matching("tasks", status, self._miner(request))
        return pb.Count(count=await self.data.count(query, call))

    async def get_task_statistics(
        self, request: pb.GetTaskStatisticsRequest, call: Call
    ) -> pb.TaskStatistics:
        asked = list(dict.fromkeys(request.statuses or tasks.STATUSES))
        if len(asked) > MOST_STATUSES:
            raise InvalidArgument(f"statuses: {len(asked)} are over the limit of {MOST_STATUSES}")
        queries = [matching("tasks", equals("status", status)) for status in asked]
        # `_init` counts as a task that has no status.
        total, *counts = await self.data.counts([matching("tasks"), *queries], call)
        return pb.TaskStatistics(
            by_status=dict(zip(asked, counts, strict=True)),
            total=total,
            other=total - sum(counts),
        )

    @staticmethod
    def _miner(request: pb.ListTasksRequest | pb.CountTasksRequest) -> Filter | None:
        if not request.HasField("miner_uid"):
            return None
        return contains("assigned_miners", uid_of(request.miner_uid, "miner_uid"))

    # --- replies --------------------------------------------------------------------------------

    def _shown(self, path: str, document: Document | None) -> pb.Changed:
        fields = None if document is None else document.fields
        return messages.changed(self.data.database, path, fields, replayed=True)

    def _task_shown(self, path: str, document: Document | None) -> pb.TaskChanged:
        reply = pb.TaskChanged(replayed=True)
        if document is not None:
            messages.encode(self.data.database, path, document.fields, reply.document)
        return reply

    def _task_changed(self, path: str, change: tasks.Changed) -> pb.TaskChanged:
        reply = pb.TaskChanged(released=change.released)
        messages.encode(self.data.database, path, change.after, reply.document)
        return reply
