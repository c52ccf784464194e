"""violet.v1 when the sidecar that works at an operation is killed at any step of its commit:
the caller asks another one with the same request_id, and it is done once."""

import subprocess
from typing import Any

import grpc
import pytest

from crossfade_api.v1 import violet_pb2 as pb
from crossfade_api.v1 import violet_pb2_grpc as rpc
from tests.fault.world import Server, world

POINTS = ("write.opened", "write.committed", "write.put")
BACK = ("reverse.claimed", "reverse.committed")


async def asked(address: str, service: str, method: str, request: Any) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = getattr(rpc, f"{service}Stub")(channel)
        return await getattr(stub, method)(request, timeout=20)


@pytest.mark.parametrize(
    ("stage", "points"), [("shadow", POINTS), ("live", BACK)], ids=["shadow", "live"]
)
@pytest.mark.timeout(240)
async def test_an_operation_is_done_once_whatever_is_killed(
    fault_server: Server, fault_directory, stage, points
):
    async with world(fault_server, fault_directory, stage=stage) as around:
        first, second = around.sidecars
        reached = 0
        for index, point in enumerate(points):
            task_id, uid = f"t{index}", 10 + index
            client = second.client
            await client.set(f"tasks/{task_id}", {"status": "pending"}, timeout=10)
            await client.set(f"miner_status/{uid}", {"current_load": 0}, timeout=10)
            create = pb.CreateUserRequest(email=f"{index}@x", role="client")
            user = await asked(second.process.address, "Users", "CreateUser", create)
            await around.settled()
            requests: list[tuple[str, str, Any]] = [
                (
                    "Tasks",
                    "AssignTask",
                    pb.AssignTaskRequest(request_id=f"a{index}", task_id=task_id, miner_uids=[uid]),
                ),
                (
                    "Users",
                    "RotateApiKey",
                    pb.RotateApiKeyRequest(request_id=f"r{index}", user_id=user.user_id),
                ),
            ]
            for service, method, request in requests:
                await first.restart(f"{point}:kill:1")
                # Or its worker takes what this one is to be killed at.
                second.process.stop_if_running()
                try:
                    await asked(first.process.address, service, method, request)
                except grpc.aio.AioRpcError as error:
                    assert error.code().name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}  # noqa: PT017
                try:
                    await first.process.gone()
                    reached += 1
                except subprocess.TimeoutExpired:  # the other's worker took it before it stood
                    await first.process.kill()
                second.process.go_on_if_stopped()
                reply = await asked(second.process.address, service, method, request)
                if method == "AssignTask":
                    assert list(reply.assigned) == [uid]
                else:
                    key = pb.GetUserByApiKeyRequest(api_key=reply.api_key)
                    await asked(second.process.address, "Users", "GetUserByApiKey", key)
            await first.restart()
            status = await client.get(f"miner_status/{uid}", timeout=10)
            assert status.fields["current_load"] == 1
            task = await client.get(f"tasks/{task_id}", timeout=10)
            assert len(task.fields["task_assignments"]) == 1
            assert await client.find(f"api_keys/{user.api_key}", timeout=10) is None
        await around.equal()
        assert reached > len(points), "most operations are to be killed at their step"
