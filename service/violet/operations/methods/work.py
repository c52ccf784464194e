"""violet.v1.Tasks: who works at tasks, what comes of it, and what is done about those of
which nothing comes."""

from typing import Any

from crossfade.call import Call
from crossfade.document import Document
from crossfade.errors import InvalidArgument
from crossfade.query import Query
from crossfade.transactions import Transaction
from crossfade.wire import decode_time
from crossfade_api.v1 import violet_pb2 as pb
from violet.operations import assigning, messages, pages, picking, responses, tasks
from violet.operations.assigning import Assignment, Wanted
from violet.operations.data import (
    among,
    carry_out,
    equals,
    limit_of,
    matching,
    now,
    path_in,
    seconds,
    statuses,
    uid_of,
)
from violet.operations.decision import Decision, drawn, found
from violet.operations.fields import age, items
from violet.operations.methods.tasks import TaskMethods

SPARE = 8
"""Candidates beyond those that are wanted: some may have filled up since they were picked."""
MOST_MINERS = 256
"""That one call may assign: a subnet has no more."""
CHUNKS_AT_ONCE = 200
CHUNKS_AFTER = 24 * 3600.0


class WorkMethods(TaskMethods):
    # --- assignment -----------------------------------------------------------------------------

    async def assign_task(self, request: pb.AssignTaskRequest, call: Call) -> pb.AssignTaskReply:
        path = path_in("tasks", request.task_id, "task_id")
        asked = [uid_of(uid, "miner_uids") for uid in dict.fromkeys(request.miner_uids)]
        if len(asked) > MOST_MINERS:
            raise InvalidArgument(f"miner_uids: {len(asked)}, the limit is {MOST_MINERS}")
        wanted = Wanted(
            _amount(request.min_count), _amount(request.max_count), request.ignore_capacity
        )
        new_id = _assignment_ids(request.request_id)

        async def work(transaction: Transaction) -> pb.AssignTaskReply:
            task = await transaction.get(path)
            if transaction.replayed:
                return self._assigned_before(path, task, request.request_id)
            task = found(task, path)
            known = await statuses(transaction, asked)
            decision = assigning.assign(task, asked, known, wanted, transaction.now, new_id)
            return self._assigned(path, carry_out(transaction, decision))

        return await self.data.run(work, call, request.request_id)

    async def auto_assign_task(
        self, request: pb.AutoAssignTaskRequest, call: Call
    ) -> pb.AssignTaskReply:
        path = path_in("tasks", request.task_id, "task_id")
        max_age = seconds(request, "max_age", picking.MAX_AGE)
        how_many = _amount(request.count)
        new_id = _assignment_ids(request.request_id)
        seen = found(await self.data.find(path, call), path)
        kind = request.task_type or str(seen.fields.get("task_type") or "")
        serving = [
            status
            async for status in self.data.scan(
                matching("miner_status", equals("is_serving", True)), call
            )
        ]
        best = picking.pick(serving, kind, now(), limit=len(serving), max_age=max_age)
        most = min((how_many or assigning.wanted_by(seen)) + SPARE, MOST_MINERS)
        ranked = [miner.uid for miner in best[:most]]

        async def work(transaction: Transaction) -> pb.AssignTaskReply:
            task = await transaction.get(path)
            if transaction.replayed:
                return self._assigned_before(path, task, request.request_id)
            task = found(task, path)
            known: dict[int, Document | None] = {}
            while more := assigning.candidates_to_read(
                task, ranked, known, kind, how_many, max_age, transaction.now
            ):
                known |= await statuses(transaction, more)
            decision = assigning.auto_assign(
                task, ranked, known, kind, how_many, max_age, transaction.now, new_id
            )
            return self._assigned(path, carry_out(transaction, decision))

        return await self.data.run(work, call, request.request_id)

    def _assigned(self, path: str, answer: Assignment) -> pb.AssignTaskReply:
        reply = pb.AssignTaskReply(
            assigned=answer.assigned, already=answer.already, enough=answer.enough
        )
        for uid, reason in answer.refused:
            reply.refused.add(miner_uid=uid, reason=reason)
        messages.encode(self.data.database, path, answer.after, reply.document)
        return reply

    def _assigned_before(
        self, path: str, task: Document | None, request_id: str
    ) -> pb.AssignTaskReply:
        """What this request did, by the ids that it gave its assignments."""
        reply = pb.AssignTaskReply(replayed=True)
        if task is None:
            return reply
        messages.encode(self.data.database, path, task.fields, reply.document)
        new_id = _assignment_ids(request_id)
        for element in items(task.fields.get("task_assignments")):
            uid: Any = element.get("miner_uid") if isinstance(element, dict) else None
            if isinstance(uid, int) and element.get("assignment_id") == new_id(uid):
                reply.assigned.append(uid)
        reply.enough = bool(reply.assigned)
        return reply

    # --- responses ------------------------------------------------------------------------------

    async def add_miner_response(
        self, request: pb.AddMinerResponseRequest, call: Call
    ) -> pb.AddMinerResponseReply:
        path = path_in("tasks", request.task_id, "task_id")
        uid = uid_of(request.miner_uid, "miner_uid")
        response = messages.fields_of(request.response, "response")
        response_id = drawn(request.request_id or None, "response")
        after = _amount(request.complete_after)

        async def work(transaction: Transaction) -> pb.AddMinerResponseReply:
            task = await transaction.get(path)
            if task is None and transaction.replayed:
                return pb.AddMinerResponseReply(replayed=True, outcome="accepted")
            task = found(task, path)
            # No other miner's status is read: its reports would be in the way.
            known = await statuses(transaction, responses.giving(task, uid, after))
            decision = responses.add(
                task,
                uid,
                response,
                known,
                transaction.now,
                response_id,
                complete_after=after,
                assigned_only=request.assigned_only and not transaction.replayed,
            )
            if transaction.replayed:
                decision = Decision(decision.answer)
            added = carry_out(transaction, decision)
            accepted = added.accepted or transaction.replayed
            reply = pb.AddMinerResponseReply(
                replayed=transaction.replayed,
                outcome="accepted" if accepted else "duplicate",
                response_id=str(added.response.get("response_id") or ""),
                response_count=added.responses,
                completed=added.after.get("status") == "completed",
            )
            messages.encode(self.data.database, path, added.after, reply.document)
            return reply

        return await self.data.run(work, call, request.request_id)

    # --- sweeps ---------------------------------------------------------------------------------

    async def settle_stale_tasks(self, request: pb.SettleStaleTasksRequest, call: Call) -> pb.Swept:
        asked = list(request.statuses) or ["assigned"]
        older_than = seconds(request, "older_than", tasks.STALE_AFTER)

        async def work(transaction: Transaction, path: str) -> bool:
            task = await transaction.get(path)
            if task is None or transaction.replayed:
                return transaction.replayed
            known = await statuses(transaction, tasks.still_held(task))
            decision = tasks.settle_stale(
                task,
                known,
                transaction.now,
                asked=asked,
                older_than=older_than,
                without_response=request.without_response or "failed",
                with_response=request.with_response,
            )
            if decision is not None:
                carry_out(transaction, decision)
            return decision is not None

        def stale(task: Document) -> bool:
            old = age(task.fields, tasks.BEGUN, now())
            return old is not None and old > older_than

        query = matching("tasks", among("status", asked))
        size = limit_of(request.limit)
        found_, token = await self.data.documents(query, size, request.page_token, call)
        swept = await self.data.sweep(filter(stale, found_), work, call, request.request_id)
        return messages.swept(swept, token)

    async def requeue_failed_tasks(self, request: pb.SweepRequest, call: Call) -> pb.Swept:
        async def work(transaction: Transaction, path: str) -> bool:
            task = await transaction.get(path)
            if task is None or transaction.replayed:
                return transaction.replayed
            known = await statuses(transaction, tasks.still_held(task))
            decision = tasks.requeue(task, known, transaction.now)
            if decision is not None:
                carry_out(transaction, decision)
            return decision is not None

        query = matching("tasks", equals("status", "failed"))
        size = limit_of(request.limit)
        failed, token = await self.data.documents(query, size, request.page_token, call)
        return messages.swept(await self.data.sweep(failed, work, call, request.request_id), token)

    async def delete_audio_chunks(
        self, request: pb.DeleteAudioChunksRequest, call: Call
    ) -> pb.Swept:
        older_than = seconds(request, "older_than", CHUNKS_AFTER)
        asked = list(request.statuses) or ["completed", "approved", "done", "failed"]

        def due(task: Document) -> bool:
            file = task.fields.get("input_file")
            cleaned = isinstance(file, dict) and file.get("chunks_cleaned") is True
            old = age(task.fields, ("created_at",), now())
            return not cleaned and old is not None and old > older_than

        async def work(transaction: Transaction, path: str) -> bool:
            task = await transaction.get(path)
            if task is None or transaction.replayed:
                return transaction.replayed
            if task.fields.get("status") not in asked or not due(task):
                return False  # somebody wants it again since it was found
            query = Query(parent=path, collection="audio_chunks", limit=CHUNKS_AT_ONCE + 1)
            chunks = [chunk.path for chunk in await transaction.find(query)]
            some, more = chunks[:CHUNKS_AT_ONCE], len(chunks) > CHUNKS_AT_ONCE
            decision = tasks.without_chunks(task, some, transaction.now, more=more)
            return bool(carry_out(transaction, decision))

        query = matching("tasks", among("status", asked))
        size = limit_of(request.limit)
        found_, token = await self.data.documents(query, size, request.page_token, call)
        swept = await self.data.sweep(filter(due, found_), work, call, request.request_id)
        return messages.swept(swept, token)

    # --- validators -----------------------------------------------------------------------------

    async def mark_task_seen(
        self, request: pb.MarkTaskSeenRequest, call: Call
    ) -> pb.MarkTaskSeenReply:
        path = path_in("tasks", request.task_id, "task_id")
        validator = _named(request.validator)
        at = decode_time(request.seen_at, "seen_at") if request.HasField("seen_at") else None

        async def work(transaction: Transaction) -> pb.MarkTaskSeenReply:
            task = await transaction.get(path)
            if transaction.replayed:
                by = () if task is None else tasks.mark_seen(task, validator, 0).answer.by
                return pb.MarkTaskSeenReply(first=True, seen_by=by, replayed=True)
            task = found(task, path)
            decision = tasks.mark_seen(task, validator, transaction.now if at is None else at)
            seen = carry_out(transaction, decision)
            return pb.MarkTaskSeenReply(first=seen.first, seen_by=seen.by)

        return await self.data.run(work, call, request.request_id)

    async def list_tasks_for_evaluation(
        self, request: pb.ListTasksForEvaluationRequest, call: Call
    ) -> pb.Documents:
        query = matching("tasks", among("status", request.statuses or ("completed", "done")))
        uid = request.validator_uid if request.HasField("validator_uid") else None

        def awaits(task: Document) -> bool:
            return tasks.awaits_evaluation(task, uid, request.validator)

        size = pages.size_of(request.page_size)
        found_ = await self.data.page(query, size, request.page_token, call, awaits)
        return messages.documents(*found_)

    async def submit_evaluation(
        self, request: pb.SubmitEvaluationRequest, call: Call
    ) -> pb.SubmitEvaluationReply:
        path = path_in("tasks", request.task_id, "task_id")
        uid = uid_of(request.validator_uid, "validator_uid")
        place = path_in("evaluations", f"{request.task_id}_{uid}", "task_id")
        fields = messages.fields_of(request.fields)

        async def work(transaction: Transaction) -> pb.SubmitEvaluationReply:
            task, earlier = await transaction.get_all([path, place])
            if transaction.replayed:
                reply = pb.SubmitEvaluationReply(replayed=True, outcome="accepted")
                if earlier is not None:
                    messages.encode(self.data.database, place, earlier.fields, reply.document)
                return reply
            task = found(task, path)
            known = await statuses(transaction, tasks.still_held(task))
            decision = tasks.evaluate(
                task, earlier, place, uid, fields, request.status, known, transaction.now
            )
            answer = carry_out(transaction, decision)
            reply = pb.SubmitEvaluationReply(outcome="accepted" if answer.accepted else "duplicate")
            messages.encode(self.data.database, place, answer.evaluation, reply.document)
            return reply

        return await self.data.run(work, call, request.request_id)

    async def list_evaluations(self, request: pb.ListByTaskRequest, call: Call) -> pb.Documents:
        query = matching("evaluations", equals("task_id", request.task_id))
        size = pages.size_of(request.page_size)
        return messages.documents(*await self.data.page(query, size, request.page_token, call))


def _assignment_ids(request_id: str) -> Any:
    return lambda uid: drawn(request_id or None, f"assignment of {uid}")


def _amount(asked: int) -> int:
    if asked < 0:
        raise InvalidArgument("a number of the request is negative")
    return asked


def _named(validator: str) -> str:
    if not validator:
        raise InvalidArgument("validator: it is empty")
    return validator
