"""The proxy server's own adapter interface, answered by a Crossfade sidecar.

async with AsyncViolet("127.0.0.1:7600") as adapter:
    task_id = await adapter.create_task({"task_type": "tts", "required_miner_count": 3})

`Violet` is the same for callers that wait. The methods have the names of the adapter
interface that the proxy server calls, so that it changes the line in which it makes one.
They differ from its own adapters in what those get wrong: None, False and an empty list
mean that it is known to be so; where nobody could say, an error is raised.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import grpc

from crossfade_api.v1 import violet_pb2_grpc as rpc
from crossfade_client import _violet
from crossfade_client._connection import Connection
from crossfade_client._requests import Attempts, checked, retry_after
from crossfade_client._violet import OPEN, Ask, Document, Operation
from crossfade_client.errors import NotFoundError, from_status
from crossfade_client.values import Changes, Fields

T = TypeVar("T")

__all__ = ["AsyncViolet", "Violet"]


class _Adapter(Connection):
    _stubs_by_name: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "Tasks": rpc.TasksStub,
        "Miners": rpc.MinersStub,
        "Users": rpc.UsersStub,
        "Content": rpc.ContentStub,
    }


def _error(error: Any, ask: Ask) -> Exception:
    """The client's own error. UNKNOWN of a write is an outcome that is not known."""
    request_id = getattr(ask.request, "request_id", None)
    return from_status(
        error.code(),
        error.details() or "",
        commit=request_id is not None,
        request_id=request_id,
    )


class AsyncViolet(_Adapter):
    """The adapter for callers that await."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        channel = self._forget()
        if channel is not None:
            await channel.close()

    # --- the adapter interface ------------------------------------------------------------------

    async def create_task(self, task_data: Fields) -> str:
        """The id of the new task: that of the data, or one drawn here."""
        return await self._run(_violet.create_task(task_data))

    async def get_task(self, task_id: str) -> Document | None:
        """None where there is none, and for no other reason."""
        return await self._run(_violet.get_task(task_id))

    async def update_task(self, task_id: str, updates: Changes) -> bool:
        """Sets field paths ("input_file.size"); False where there is no such task."""
        return await self._run(_violet.update_task(task_id, updates))

    async def get_tasks_by_status(
        self, status: str | Sequence[str], limit: int = 100
    ) -> list[Document]:
        """Tasks of a status, or of several, in the order of their ids."""
        return await self._run(_violet.get_tasks_by_status(status, limit))

    async def assign_task_to_miners(
        self,
        task_id: str,
        miner_uids: Iterable[int],
        min_count: int = 1,
        max_count: int | None = None,
    ) -> bool:
        """Whether any of the miners has the task now; False where there is no such task."""
        operation = _violet.assign_task_to_miners(task_id, miner_uids, min_count, max_count)
        return await self._run(operation)

    async def get_available_miners(
        self, task_type: str | None = None, limit: int = 10
    ) -> list[Document]:
        """The statuses of miners that can take a task, the best first."""
        return await self._run(_violet.get_available_miners(task_type, limit))

    async def update_miner_task_load(self, miner_uid: int, delta: int) -> bool:
        """Adds to a miner's load, which stays between 0 and its capacity."""
        return await self._run(_violet.update_miner_task_load(miner_uid, delta))

    async def get_miner_task_count(self, miner_uid: int) -> int:
        """The miner's tasks that are not over."""
        return await self._run(_violet.get_miner_task_count(miner_uid))

    # --- what the proxy server asks for besides -------------------------------------------------

    async def update_task_status(self, task_id: str, status: str, **more: Any) -> bool:
        return await self._run(_violet.update_task_status(task_id, status, more))

    async def get_miner_tasks(
        self, miner_uid: int, statuses: Iterable[str] = OPEN, limit: int = 100
    ) -> list[Document]:
        return await self._run(_violet.get_miner_tasks(miner_uid, statuses, limit))

    async def add_miner_response(self, task_id: str, miner_uid: int, response: Fields) -> bool:
        """False for a miner that has responded before, or where there is no such task."""
        return await self._run(_violet.add_miner_response(task_id, miner_uid, response))

    async def delete_task(self, task_id: str) -> bool:
        """Whether there was one."""
        return await self._run(_violet.delete_task(task_id))

    async def register_miner(self, miner_uid: int, **fields: Any) -> bool:
        return await self._run(_violet.register_miner(miner_uid, fields))

    async def get_all_miners(self, limit: int = 1_000) -> list[Document]:
        return await self._run(_violet.get_all_miners(limit))

    async def create_user(self, email: str, role: str, **fields: Any) -> Document:
        """The new user, with its api_key. AlreadyExistsError for an email that has one."""
        return await self._run(_violet.create_user(email, role, fields))

    async def get_user_by_email(self, email: str) -> Document | None:
        """Inactive users, too."""
        return await self._run(_violet.get_user_by_email(email))

    async def get_user_by_api_key(self, api_key: str) -> Document | None:
        """Active users only."""
        return await self._run(_violet.get_user_by_api_key(api_key))

    async def rotate_api_key(self, user_id: str) -> str:
        """The new key. NotFoundError where there is no such user."""
        return await self._run(_violet.rotate_api_key(user_id))

    async def update_last_login(self, user_id: str) -> bool:
        return await self._run(_violet.update_last_login(user_id))

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, service: str, method: str, request: Any) -> Any:
        """Any other RPC of violet.v1, by its service ("Tasks") and its name ("ArchiveTask")."""
        return await self._ask(Ask(service, method, request), self._attempts())

    async def _run(self, operation: Operation[T]) -> T:
        attempts = self._attempts()
        try:
            ask = next(operation)
            while True:
                try:
                    reply = await self._ask(ask, attempts)
                except NotFoundError as error:
                    ask = operation.throw(error)
                else:
                    ask = operation.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _ask(self, ask: Ask, attempts: Attempts) -> Any:
        request = _violet.identified(ask.request)
        pairs = self._pairs()
        while True:
            method = self._method(ask.method, grpc.aio, ask.service)
            try:
                return checked(await method(request, timeout=attempts.remaining(), metadata=pairs))
            except grpc.aio.AioRpcError as error:
                pause = attempts.pause(error.code(), retry_after(error))
                if pause is None:
                    raise _error(error, ask) from error
            await asyncio.sleep(pause)


class Violet(_Adapter):
    """The adapter for callers that wait; it may be shared by threads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        channel = self._forget()
        if channel is not None:
            channel.close()

    # --- the adapter interface: see AsyncViolet -------------------------------------------------

    def create_task(self, task_data: Fields) -> str:
        return self._run(_violet.create_task(task_data))

    def get_task(self, task_id: str) -> Document | None:
        return self._run(_violet.get_task(task_id))

    def update_task(self, task_id: str, updates: Changes) -> bool:
        return self._run(_violet.update_task(task_id, updates))

    def get_tasks_by_status(self, status: str | Sequence[str], limit: int = 100) -> list[Document]:
        return self._run(_violet.get_tasks_by_status(status, limit))

    def assign_task_to_miners(
        self,
        task_id: str,
        miner_uids: Iterable[int],
        min_count: int = 1,
        max_count: int | None = None,
    ) -> bool:
        operation = _violet.assign_task_to_miners(task_id, miner_uids, min_count, max_count)
        return self._run(operation)

    def get_available_miners(self, task_type: str | None = None, limit: int = 10) -> list[Document]:
        return self._run(_violet.get_available_miners(task_type, limit))

    def update_miner_task_load(self, miner_uid: int, delta: int) -> bool:
        return self._run(_violet.update_miner_task_load(miner_uid, delta))

    def get_miner_task_count(self, miner_uid: int) -> int:
        return self._run(_violet.get_miner_task_count(miner_uid))

    # --- what the proxy server asks for besides -------------------------------------------------

    def update_task_status(self, task_id: str, status: str, **more: Any) -> bool:
        return self._run(_violet.update_task_status(task_id, status, more))

    def get_miner_tasks(
        self, miner_uid: int, statuses: Iterable[str] = OPEN, limit: int = 100
    ) -> list[Document]:
        return self._run(_violet.get_miner_tasks(miner_uid, statuses, limit))

    def add_miner_response(self, task_id: str, miner_uid: int, response: Fields) -> bool:
        return self._run(_violet.add_miner_response(task_id, miner_uid, response))

    def delete_task(self, task_id: str) -> bool:
        return self._run(_violet.delete_task(task_id))

    def register_miner(self, miner_uid: int, **fields: Any) -> bool:
        return self._run(_violet.register_miner(miner_uid, fields))

    def get_all_miners(self, limit: int = 1_000) -> list[Document]:
        return self._run(_violet.get_all_miners(limit))

    def create_user(self, email: str, role: str, **fields: Any) -> Document:
        return self._run(_violet.create_user(email, role, fields))

    def get_user_by_email(self, email: str) -> Document | None:
        return self._run(_violet.get_user_by_email(email))

    def get_user_by_api_key(self, api_key: str) -> Document | None:
        return self._run(_violet.get_user_by_api_key(api_key))

    def rotate_api_key(self, user_id: str) -> str:
        return self._run(_violet.rotate_api_key(user_id))

    def update_last_login(self, user_id: str) -> bool:
        return self._run(_violet.update_last_login(user_id))

    # --- calls ----------------------------------------------------------------------------------

    def call(self, service: str, method: str, request: Any) -> Any:
        """Any other RPC of violet.v1."""
        return self._ask(Ask(service, method, request), self._attempts())

    def _run(self, operation: Operation[T]) -> T:
        attempts = self._attempts()
        try:
            ask = next(operation)
            while True:
                try:
                    reply = self._ask(ask, attempts)
                except NotFoundError as error:
                    ask = operation.throw(error)
                else:
                    ask = operation.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _ask(self, ask: Ask, attempts: Attempts) -> Any:
        request = _violet.identified(ask.request)
        pairs = self._pairs()
        while True:
            method = self._method(ask.method, grpc, ask.service)
            try:
                return checked(method(request, timeout=attempts.remaining(), metadata=pairs))
            except grpc.RpcError as error:
                failure: Any = error  # a call, too, which the types do not say
                pause = attempts.pause(failure.code(), retry_after(failure))
                if pause is None:
                    raise _error(failure, ask) from error
            time.sleep(pause)
