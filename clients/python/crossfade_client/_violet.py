"""What the adapter for the proxy server asks of violet.v1 and makes of the answers. No I/O.

Each operation is a generator of the requests it sends, which is sent the replies (or has
NotFoundError thrown into it) and returns what the caller gets. `violet.py` runs them,
waiting or awaiting.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from crossfade_api.v1 import violet_pb2 as pb
from crossfade_client import _codec
from crossfade_client.errors import InternalError, NotFoundError
from crossfade_client.values import SERVER_TIMESTAMP, Changes, Fields
from crossfade_client.writes import Write

T = TypeVar("T")

PAGE = 500
OPEN = ("pending", "assigned", "in_progress", "processing", "distributed")
"""Statuses of tasks that a miner is to work at, by the words of both eras."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: "Tasks", "GetTask" and its request."""

    service: str
    method: str
    request: Any


Operation: TypeAlias = Generator[Ask, Any, T]
Document: TypeAlias = dict[str, Any]


def identified(request: Any) -> Any:
    """The request, with a request_id if it takes one: so that it can be sent again."""
    if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
        request.request_id = str(uuid4())
    return request


# --- tasks -------------------------------------------------------------------------------------


def create_task(task_data: Fields) -> Operation[str]:
    fields = {
        name: value
        for name, value in stored(task_data).items()
        # The sidecar sets both where they are absent.
        if not (value is SERVER_TIMESTAMP and name in {"created_at", "updated_at"})
    }
    task_id = str(fields.get("task_id") or uuid4())
    request = pb.CreateTaskRequest(task_id=task_id)
    _codec.encode_fields({**fields, "task_id": task_id}, request.fields)
    yield Ask("Tasks", "CreateTask", request)
    return task_id


def get_task(task_id: str) -> Operation[Document | None]:
    return (yield from _perhaps(Ask("Tasks", "GetTask", pb.GetRequest(id=task_id))))


def update_task(task_id: str, updates: Changes) -> Operation[bool]:
    write = Write.update(f"tasks/{task_id}", stored(updates)).message
    request = pb.UpdateTaskRequest(
        task_id=task_id,
        update_mask=write.update_mask,
        update_transforms=write.update_transforms,
    )
    _copy(write.update.fields, request.fields)
    return (yield from _existing(Ask("Tasks", "UpdateTask", request)))


def update_task_status(task_id: str, status: str, more: Changes) -> Operation[bool]:
    request = pb.SetTaskStatusRequest(task_id=task_id, status=str(_plain(status)))
    if more:
        write = Write.update(f"tasks/{task_id}", stored(more)).message
        request.update_mask.CopyFrom(write.update_mask)
        request.update_transforms.extend(write.update_transforms)
        _copy(write.update.fields, request.fields)
    return (yield from _existing(Ask("Tasks", "SetTaskStatus", request)))


def get_tasks_by_status(status: str | Sequence[str], limit: int) -> Operation[list[Document]]:
    words = [status] if isinstance(status, str) else list(status)
    return (yield from _tasks(pb.ListTasksRequest(statuses=map(str, map(_plain, words))), limit))


def get_miner_tasks(
    miner_uid: int, statuses: Iterable[str], limit: int
) -> Operation[list[Document]]:
    words = [str(_plain(status)) for status in statuses]
    return (yield from _tasks(pb.ListTasksRequest(statuses=words, miner_uid=miner_uid), limit))


def assign_task_to_miners(
    task_id: str, miner_uids: Iterable[int], min_count: int, max_count: int | None
) -> Operation[bool]:
    request = pb.AssignTaskRequest(
        task_id=task_id,
        miner_uids=miner_uids,
        min_count=min_count or 0,
        max_count=max_count or 0,
    )
    try:
        reply = yield Ask("Tasks", "AssignTask", request)
    except NotFoundError:
        return False
    return bool(reply.assigned or reply.already)


def add_miner_response(task_id: str, miner_uid: int, response: Fields) -> Operation[bool]:
    request = pb.AddMinerResponseRequest(task_id=task_id, miner_uid=miner_uid)
    _codec.encode_fields(stored(response), request.response)
    try:
        reply = yield Ask("Tasks", "AddMinerResponse", request)
    except NotFoundError:
        return False
    return bool(reply.outcome == "accepted")


def delete_task(task_id: str) -> Operation[bool]:
    reply = yield Ask("Tasks", "DeleteTask", pb.TaskRequest(task_id=task_id))
    return bool(reply.existed)


# --- miners ------------------------------------------------------------------------------------


def get_available_miners(task_type: str | None, limit: int) -> Operation[list[Document]]:
    request = pb.PickAvailableMinersRequest(task_type=str(_plain(task_type or "")), limit=limit)
    reply = yield Ask("Miners", "PickAvailableMiners", request)
    return [
        {**_codec.decode_fields(miner.status.fields), "uid": miner.uid, "score": miner.score}
        for miner in reply.miners
    ]


def update_miner_task_load(miner_uid: int, delta: int) -> Operation[bool]:
    request = pb.AdjustMinerLoadRequest(uid=miner_uid, delta=delta)
    yield Ask("Miners", "AdjustMinerLoad", request)
    return True


def get_miner_task_count(miner_uid: int) -> Operation[int]:
    reply = yield Ask("Tasks", "CountTasks", pb.CountTasksRequest(miner_uid=miner_uid))
    return int(reply.count)


def register_miner(miner_uid: int, fields: Fields) -> Operation[bool]:
    request = pb.MinerRequest(uid=miner_uid)
    _codec.encode_fields(stored(fields), request.fields)
    yield Ask("Miners", "RegisterMiner", request)
    return True


def get_all_miners(limit: int) -> Operation[list[Document]]:
    return (yield from _listed("Miners", "ListMiners", pb.ListRequest(), limit))


# --- users -------------------------------------------------------------------------------------


def create_user(email: str, role: str, fields: Fields) -> Operation[Document]:
    request = pb.CreateUserRequest(email=email, role=str(_plain(role)))
    _codec.encode_fields(stored(fields), request.fields)
    reply = yield Ask("Users", "CreateUser", request)
    return _document(reply)


def get_user_by_email(email: str) -> Operation[Document | None]:
    request = pb.GetUserByEmailRequest(email=email)
    return (yield from _perhaps(Ask("Users", "GetUserByEmail", request)))


def get_user_by_api_key(api_key: str) -> Operation[Document | None]:
    request = pb.GetUserByApiKeyRequest(api_key=api_key)
    return (yield from _perhaps(Ask("Users", "GetUserByApiKey", request)))


def rotate_api_key(user_id: str) -> Operation[str]:
    reply = yield Ask("Users", "RotateApiKey", pb.RotateApiKeyRequest(user_id=user_id))
    return str(reply.api_key)


def update_last_login(user_id: str) -> Operation[bool]:
    request = pb.UserRequest(user_id=user_id)
    return (yield from _existing(Ask("Users", "RecordLogin", request)))


# --- in common ---------------------------------------------------------------------------------


def stored(value: Any) -> Any:
    """As the application's own library stores it: a datetime without a zone is in UTC."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.utcoffset() is None else value
    if isinstance(value, Mapping):
        return {name: stored(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [stored(item) for item in value]
    return value


def _plain(word: Any) -> Any:
    """The word of an enum."""
    return getattr(word, "value", word)


def _copy(fields: Any, into: Any) -> None:
    for name in fields:
        into[name].CopyFrom(fields[name])


def _document(reply: Any) -> Document:
    if not reply.HasField("document"):
        raise InternalError("the reply has no document")
    return _codec.decode_fields(reply.document.fields)


def _perhaps(ask: Ask) -> Operation[Document | None]:
    try:
        reply = yield ask
    except NotFoundError:
        return None
    return _document(reply)


def _existing(ask: Ask) -> Operation[bool]:
    """Whether there was something to change."""
    try:
        yield ask
    except NotFoundError:
        return False
    return True


def _tasks(request: Any, limit: int) -> Operation[list[Document]]:
    return (yield from _listed("Tasks", "ListTasks", request, limit))


def _listed(service: str, method: str, request: Any, limit: int) -> Operation[list[Document]]:
    """The first `limit` documents of a list, page by page."""
    found: list[Document] = []
    while len(found) < limit:
        request.page_size = min(limit - len(found), PAGE)
        reply = yield Ask(service, method, request)
        found += [_codec.decode_fields(document.fields) for document in reply.documents]
        request.page_token = reply.next_page_token
        if not request.page_token:
            break
    return found
