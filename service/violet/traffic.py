"""Runs the proxy server's calls through a Crossfade client and judges the answers.

`perform` says, without any I/O, what one operation asks for and what is wrong with
the answers; `run_operation` feeds it from the async client, the load test from
synchronous stubs. What it finds names paths and fields, never values.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from time import monotonic
from typing import Any, TypeAlias

import structlog

from crossfade_client import (
    SERVER_TIMESTAMP,
    ArrayUnion,
    AsyncCrossfade,
    CommitResult,
    CrossfadeError,
    Increment,
    Query,
    Snapshot,
    Write,
)
from violet.mix import (
    AddResponse,
    AssignTask,
    CreateTask,
    DeleteTask,
    GetTask,
    GetUserByApiKey,
    ListTasks,
    Operation,
    Operations,
    PollTasks,
    ReportMiner,
    SetStatus,
)
from violet.sample import keys

log = structlog.get_logger(__name__)

MAX_PROBLEMS = 20
MAX_REQUEST = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Find:
    """Asks for one document; answered with a Snapshot, or None where there is none."""

    path: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Answered with a CommitResult."""

    write: Write


Step: TypeAlias = Find | Query | Commit
"""A Query is answered with the list of its Snapshots."""

Performance: TypeAlias = Generator[Step, Any, list[str]]


def perform(operation: Operation) -> Performance:
    """The steps of an operation, each to be sent its answer; returns the problems found."""
    return _PERFORMERS[type(operation)](operation)


async def run_operation(
    client: AsyncCrossfade, operation: Operation, *, timeout: float | None = None
) -> list[str]:
    """Runs one operation. Returns what is wrong with its answers: nothing, mostly.

    `timeout` (seconds) is for each of its calls. Raises the client's errors.
    """
    performance = perform(operation)
    answer: Any = None
    while True:
        try:
            step = performance.send(answer)
        except StopIteration as end:
            problems: list[str] = end.value
            return problems
        if isinstance(step, Find):
            answer = await client.find(step.path, timeout=timeout)
        elif isinstance(step, Query):
            answer = [snapshot async for snapshot in client.query(step, timeout=timeout)]
        else:
            answer = await client.commit([step.write], timeout=timeout)


@dataclass
class Tally:
    """What came of many operations: how many of each kind went through, how many failed
    with which status, how many answers were wrong, and the first of those problems."""

    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, operation: Operation, problems: Sequence[str]) -> None:
        self.done[type(operation).__name__] += 1
        self.wrong += bool(problems)
        room = MAX_PROBLEMS - len(self.problems)
        self.problems += problems[: max(room, 0)]


async def drive(
    client: AsyncCrossfade,
    operations: Operations,
    tally: Tally,
    *,
    until: Callable[[], bool],
    period: float = 0.0,
    timeout: float | None = None,
) -> None:
    """One caller: runs operations until told otherwise, counts what came of them, and
    deletes its own tasks at the end. Errors of calls are counted, not raised.

    `period`: seconds from the start of one operation to the next, if that one is done.
    """

    async def run(operation: Operation) -> None:
        try:
            tally.add(operation, await run_operation(client, operation, timeout=timeout))
        except CrossfadeError as error:
            tally.errors[error.code.name] += 1
            operations.forget(operation)

    while not until():
        begun = monotonic()
        await run(next(operations))
        if period:
            await asyncio.sleep(max(0.0, begun + period - monotonic()))
    for operation in operations.clear():
        await run(operation)


async def run(
    client: AsyncCrossfade,
    *,
    seed: int,
    tasks: int,
    rate: float,
    callers: int = 4,
    sample_seed: int = 1,
) -> None:
    """Live traffic over `documents(sample_seed, tasks)` until cancelled, `rate` operations a
    second at most. Wrong answers are logged, by path and field."""
    known = keys(sample_seed, tasks)
    tally = _Loud()
    async with asyncio.TaskGroup() as group:
        for caller in range(callers):
            operations = Operations(Random(f"{seed}/{caller}"), known)  # noqa: S311 (sample traffic)
            group.create_task(
                drive(client, operations, tally, until=lambda: False, period=callers / rate)
            )


class _Loud(Tally):
    """Logs each problem instead of keeping it."""

    def add(self, operation: Operation, problems: Sequence[str]) -> None:
        for problem in problems:
            log.warning("wrong answer", action="wrong_answer", problem=problem)
        super().add(operation, problems)


# --- the operations ------------------------------------------------------------------------------


def _get_task(operation: GetTask) -> Performance:
    found: Snapshot | None = yield Find(f"tasks/{operation.task_id}")
    path = f"tasks/{operation.task_id}"
    if not operation.present:
        return [] if found is None else [f"{path}: was deleted, and is there"]
    if found is None:
        return [f"{path}: is missing"]
    problems = _judge_task(found, operation.task_id)
    expected = operation.expected
    if expected is not None:
        fields = found.fields
        actual = {
            "status": fields.get("status") == expected.status,
            "response_count": fields.get("response_count", 0) == expected.responses,
            "miner_responses": len(fields.get("miner_responses", ())) == expected.responses,
            "assigned_miners": tuple(fields.get("assigned_miners", ())) == expected.miners,
        }
        problems += [
            f"{path}: {name} is not what was written" for name, ok in actual.items() if not ok
        ]
    return problems


def _judge_task(found: Snapshot, task_id: str) -> list[str]:
    fields = found.fields
    right = {
        "__name__": found.path == f"tasks/{task_id}",
        "task_id": fields.get("task_id") == task_id,
        "status": isinstance(fields.get("status"), str),
        "created_at": isinstance(fields.get("created_at"), datetime),
        "required_miner_count": type(fields.get("required_miner_count")) in {int, float},
        "input": bool({"input_text", "input_file", "input_file_id"} & fields.keys()),
    }
    return [f"tasks/{task_id}: {name} is not right" for name, ok in right.items() if not ok]


def _poll_tasks(operation: PollTasks) -> Performance:
    query = (
        Query("tasks")
        .where("assigned_miners", "array-contains", operation.uid)
        .where("status", "in", list(operation.statuses))
    )
    found: list[Snapshot] = yield query
    problems = _judge_order(found)
    for task in found:
        if operation.uid not in task.fields.get("assigned_miners", ()):
            problems.append(f"{task.path}: polled by {operation.uid}, not assigned to it")
        if task.fields.get("status") not in operation.statuses:
            problems.append(f"{task.path}: polled, and its status was not asked for")
    absent = operation.own - {task.id for task in found}
    problems += [f"tasks/{task_id}: is missing from its miner's poll" for task_id in sorted(absent)]
    return problems


def _list_tasks(operation: ListTasks) -> Performance:
    query = Query("tasks").where("status", "==", operation.status).limit(operation.limit)
    found: list[Snapshot] = yield query
    problems = _judge_order(found)
    if len(found) > operation.limit:
        problems.append(f"tasks by status: more than the limit of {operation.limit}")
    problems += [
        f"{task.path}: listed, and its status was not asked for"
        for task in found
        if task.fields.get("status") != operation.status
    ]
    return problems


def _judge_order(found: list[Snapshot]) -> list[str]:
    """Without an order, documents come by their ids, each once."""
    ids = [snapshot.id for snapshot in found]
    return [] if ids == sorted(set(ids)) else ["tasks: a query's answer is not in the order of ids"]


def _get_user(operation: GetUserByApiKey) -> Performance:
    index: Snapshot | None = yield Find(f"api_keys/{operation.api_key}")
    if index is None:
        return ["api_keys: an index is missing"]
    user: Snapshot | None = yield Find(f"users/{index.fields['user_id']}")
    if operation.dangling:
        return [] if user is None else ["users: a dangling index led to a user"]
    if user is None:
        return ["users: the user of an index is missing"]
    right = {
        "user_id": user.fields.get("user_id") == index.fields["user_id"] == user.id,
        "role": user.fields.get("role") == index.fields.get("role"),
        "api_key": user.fields.get("api_key") == operation.api_key,
        "is_active": isinstance(user.fields.get("is_active"), bool),
    }
    return [f"{user.path}: {name} is not right" for name, ok in right.items() if not ok]


def _report_miner(operation: ReportMiner) -> Performance:
    path = f"miner_status/{operation.uid}"
    fields = operation.fields | {
        "validator_reports_count": Increment(1),
        "last_seen": SERVER_TIMESTAMP,
        "last_updated": SERVER_TIMESTAMP,
    }
    result: CommitResult = yield Commit(Write.merge(path, fields))
    if result.replayed:
        return _judge_time(path, result)
    count, *times = result.writes[0].transform_results
    problems = _judge_time(path, result)
    if type(count) is not int or count < 1:
        problems.append(f"{path}: validator_reports_count did not rise to a count")
    # Firestore's server time is that of the request, in milliseconds: near the commit's.
    near = [abs(time - result.commit_time) < MAX_REQUEST for time in set(times)]
    if len(times) != 2 or near != [True]:
        problems.append(f"{path}: the server timestamps are not the time of one request")
    return problems


def _judge_time(path: str, result: CommitResult) -> list[str]:
    times = [write.update_time for write in result.writes]
    right = times == [result.commit_time]
    return [] if right else [f"{path}: update_time is not the time of the commit"]


def _create_task(operation: CreateTask) -> Performance:
    path = f"tasks/{operation.task_id}"
    times = {"created_at": SERVER_TIMESTAMP, "updated_at": SERVER_TIMESTAMP}
    result: CommitResult = yield Commit(Write.set(path, operation.fields | times))
    return _judge_time(path, result)


def _assign_task(operation: AssignTask) -> Performance:
    path = f"tasks/{operation.task_id}"
    write = Write.update(
        path,
        {
            "assigned_miners": list(operation.uids),
            "task_assignments": [{"miner_uid": u, "status": "pending"} for u in operation.uids],
            "status": "assigned",
            "distributed_at": SERVER_TIMESTAMP,
            "updated_at": SERVER_TIMESTAMP,
        },
    )
    result: CommitResult = yield Commit(write)
    return _judge_time(path, result)


def _add_response(operation: AddResponse) -> Performance:
    path = f"tasks/{operation.task_id}"
    write = Write.update(
        path,
        {
            "miner_responses": ArrayUnion([operation.response]),
            "response_count": Increment(1),
            "last_response_at": SERVER_TIMESTAMP,
            "updated_at": SERVER_TIMESTAMP,
            "status": "processing",
        },
    )
    result: CommitResult = yield Commit(write)
    return _judge_time(path, result)


def _set_status(operation: SetStatus) -> Performance:
    path = f"tasks/{operation.task_id}"
    fields = {"status": operation.status, "updated_at": SERVER_TIMESTAMP, **operation.extra}
    result: CommitResult = yield Commit(Write.update(path, fields))
    return _judge_time(path, result)


def _delete_task(operation: DeleteTask) -> Performance:
    path = f"tasks/{operation.task_id}"
    result: CommitResult = yield Commit(Write.delete(path))
    if result.update_time is not None:
        return [f"{path}: a delete was answered with an update_time"]
    return []


_PERFORMERS: dict[type[Any], Callable[[Any], Performance]] = {
    GetTask: _get_task,
    PollTasks: _poll_tasks,
    ListTasks: _list_tasks,
    GetUserByApiKey: _get_user,
    ReportMiner: _report_miner,
    CreateTask: _create_task,
    AssignTask: _assign_task,
    AddResponse: _add_response,
    SetStatus: _set_status,
    DeleteTask: _delete_task,
}
