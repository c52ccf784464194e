"""What the proxy server asks its database for, as data, in the proportions it asks.

`Operations` is one caller: it draws the next operation and remembers what the tasks
it made must look like by now, so that whoever runs them can judge the answers. It
changes only tasks of its own, so any number of callers can work side by side, and
it deletes what it made, so the database does not grow.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from violet.sample import Keys, specialization
from violet.sample_tasks import (
    OPEN_STATUSES,
    STATUSES,
    Fields,
    new_id,
    new_task,
    response_data,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a task of the caller's own holds by now."""

    status: str
    responses: int
    miners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GetTask:
    """`present` False: deleted before. `expected` None: a task of the sample."""

    task_id: str
    present: bool = True
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class PollTasks:
    """A miner asks for its open tasks. `own`: ids that must be among the answers."""

    uid: int
    own: frozenset[str] = frozenset()
    statuses: tuple[str, ...] = OPEN_STATUSES


@dataclass(frozen=True, slots=True)
class ListTasks:
    """Tasks in one status, the first of them by id."""

    status: str
    limit: int = 100


@dataclass(frozen=True, slots=True)
class GetUserByApiKey:
    """The index, then the user. `dangling`: there is an index but no user."""

    api_key: str
    dangling: bool = False


@dataclass(frozen=True, slots=True)
class ReportMiner:
    """A validator's report, merged into miner_status; its count rises by one."""

    uid: int
    fields: Fields = field(hash=False)


@dataclass(frozen=True, slots=True)
class CreateTask:
    task_id: str
    fields: Fields = field(hash=False)


@dataclass(frozen=True, slots=True)
class AssignTask:
    task_id: str
    uids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddResponse:
    """One flush of the response aggregator."""

    task_id: str
    response: Fields = field(hash=False)


@dataclass(frozen=True, slots=True)
class SetStatus:
    """`extra`: more fields by dotted path."""

    task_id: str
    status: str
    extra: Fields = field(hash=False)


@dataclass(frozen=True, slots=True)
class DeleteTask:
    task_id: str


Operation: TypeAlias = (
    GetTask
    | PollTasks
    | ListTasks
    | GetUserByApiKey
    | ReportMiner
    | CreateTask
    | AssignTask
    | AddResponse
    | SetStatus
    | DeleteTask
)

# Of 100 calls. Every request looks up its API key, miners poll all the time.
WEIGHTS: dict[type[Any], int] = {
    GetTask: 30,
    PollTasks: 22,
    GetUserByApiKey: 18,
    ReportMiner: 8,
    AddResponse: 7,
    CreateTask: 4,
    AssignTask: 4,
    SetStatus: 4,
    ListTasks: 3,
}
MAX_OWN = 20
MAX_RESPONSES = 6


@dataclass
class _Own:
    status: str = "pending"
    responses: int = 0
    miners: tuple[int, ...] = ()

    def expected(self) -> Expected:
        return Expected(self.status, self.responses, self.miners)


class Operations(Iterator[Operation]):
    """An endless caller, to be run in order. State advances as if each operation succeeded;
    tell `forget` of one that did not, or whose outcome is not known."""

    def __init__(self, rng: Random, keys: Keys) -> None:
        self._rng = rng
        self._keys = keys
        self._own: dict[str, _Own] = {}
        self._gone: deque[str] = deque(maxlen=20)
        self._kinds = list(WEIGHTS)
        self._weights = list(WEIGHTS.values())

    def __next__(self) -> Operation:
        rng = self._rng
        if len(self._own) > MAX_OWN:
            return self._delete(next(iter(self._own)))
        kind = rng.choices(self._kinds, self._weights)[0]
        if kind is GetTask:
            return self._get()
        if kind is PollTasks:
            return self._poll()
        if kind is GetUserByApiKey:
            if rng.random() < 0.02:
                return GetUserByApiKey(rng.choice(self._keys.dangling), dangling=True)
            return GetUserByApiKey(rng.choice(self._keys.api_keys))
        if kind is ReportMiner:
            return ReportMiner(uid := rng.choice(self._keys.miners), _report(rng, uid))
        if kind is ListTasks:
            return ListTasks(rng.choice(STATUSES))
        if kind is CreateTask or not self._own:
            return self._create()
        return self._change(kind, rng.choice(list(self._own)))

    def forget(self, operation: Operation) -> None:
        """Nothing is expected any more of the task that this operation was about."""
        task_id = getattr(operation, "task_id", None)
        if task_id is not None:
            self._own.pop(task_id, None)
            if task_id in self._gone:
                self._gone.remove(task_id)

    def clear(self) -> Iterator[DeleteTask]:
        """Deletes what is left of the caller's own tasks."""
        while self._own:
            yield self._delete(next(iter(self._own)))

    def _get(self) -> GetTask:
        draw = self._rng.random()
        if draw < 0.1 and self._gone:
            return GetTask(self._rng.choice(self._gone), present=False)
        if (draw < 0.5 or not self._keys.tasks) and self._own:
            task_id = self._rng.choice(list(self._own))
            return GetTask(task_id, expected=self._own[task_id].expected())
        if not self._keys.tasks:
            return GetTask("never_made", present=False)
        return GetTask(self._rng.choice(self._keys.tasks))

    def _poll(self) -> PollTasks:
        uid = self._rng.choice(self._keys.miners)
        own = (
            task_id
            for task_id, task in self._own.items()
            if uid in task.miners and task.status in OPEN_STATUSES
        )
        return PollTasks(uid, frozenset(own))

    def _create(self) -> CreateTask:
        task_id = new_id(self._rng)
        self._own[task_id] = _Own()
        return CreateTask(task_id, new_task(self._rng, task_id))

    def _change(self, kind: type[Any], task_id: str) -> Operation:
        rng, own = self._rng, self._own[task_id]
        if kind is AssignTask or not own.miners:
            count = min(3, len(self._keys.miners))
            own.status, own.miners = "assigned", tuple(rng.sample(self._keys.miners, count))
            return AssignTask(task_id, own.miners)
        if kind is AddResponse:
            if own.responses >= MAX_RESPONSES:
                return self._delete(task_id)
            own.status, own.responses = "processing", own.responses + 1
            # The id keeps equal answers apart: a union drops an element it has.
            response = {"response_id": new_id(rng), "response_data": response_data(rng)}
            return AddResponse(task_id, {"miner_uid": rng.choice(own.miners)} | response)
        own.status = rng.choice(STATUSES)
        extra = {"user_metadata.note": f"set to {own.status}", "user_metadata.by": "traffic"}
        return SetStatus(task_id, own.status, extra)

    def _delete(self, task_id: str) -> DeleteTask:
        del self._own[task_id]
        self._gone.append(task_id)
        return DeleteTask(task_id)


def operations(rng: Random, keys: Keys) -> Operations:
    """One caller's operations. Two callers need generators of different seeds."""
    return Operations(rng, keys)


def _report(rng: Random, uid: int) -> Fields:
    """As a validator posts it; the times and the count are the store's."""
    return {
        "uid": uid,
        "is_serving": rng.random() < 0.9,
        "stake": rng.choice((1_000, 1_000.5)),
        "performance_score": round(rng.random(), 3),
        "current_load": rng.randrange(4),
        "max_capacity": 5,
        "task_type_specialization": specialization(rng),
        "last_reported_by_validator": rng.choice((3, 7)),
    }
