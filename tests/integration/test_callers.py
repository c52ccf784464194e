"""Who may call, over real channels: every method, every way to be refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crossfade.access import Role
from crossfade.rpc.methods import METHODS, needs_of
from crossfade.telemetry import DENIED, TOKENS_REFUSED, Telemetry
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc, crossfade_pb2, jobs_pb2, violet_pb2
from crossfade_client import (
    AsyncCrossfade,
    Crossfade,
    PermissionDeniedError,
    UnauthenticatedError,
)
from crossfade_client.violet import AsyncViolet
from tests.grpc_caller import call
from tests.guarded import ADMIN, EXPIRED, READER, TOKENS, WRITER, bearer, guarded
from tests.postgres_fixture import MakeDatabase
from tests.sidecar import eventually, running
from violet.service import needs_of as violet_needs

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
BY_ROLE = {Role.READER: READER, Role.WRITER: WRITER, Role.ADMIN: ADMIN}


def methods() -> dict[str, Any]:
    """Every method of every service, with what it needs."""
    found = {name: needs_of(name) for name in METHODS}
    for file in (crossfade_pb2, admin_pb2, jobs_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"{service.full_name}/{method.name}"] = needs_of(
                    f"{service.full_name}/{method.name}"
                )
    for service in violet_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            found[f"{service.full_name}/{method.name}"] = violet_needs(method.name)
    return found


@pytest.fixture(scope="module")
async def address(tmp_path_factory) -> AsyncIterator[str]:
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    file.write_text(TOKENS)
    async with guarded(access={"tokens_file": file}) as sidecar:
        yield sidecar.address


async def ask(address: str, method: str, metadata: Any = ()) -> grpc.StatusCode:
    """What a stream of one empty message is answered with, whatever kind the method is of."""
    return (await call(address, method, b"", metadata)).code


# --- roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [(), bearer("nobody-0123456789"), bearer(EXPIRED)])
async def test_every_method_refuses_who_is_not_known(address, shown):
    asked = sorted(methods())
    codes = await asyncio.gather(*(ask(address, name, shown) for name in asked))
    assert dict(zip(asked, codes, strict=True)) == dict.fromkeys(asked, UNAUTHENTICATED)


async def test_every_method_needs_its_role_and_no_more(address):
    for name, needs in methods().items():
        for role, token in BY_ROLE.items():
            if role < needs.role:
                assert await ask(address, name, bearer(token)) is PERMISSION_DENIED, name
            elif role == needs.role and not name.endswith(("Watch", "Listen", "Write")):
                code = await ask(address, name, bearer(token))
                assert code not in {UNAUTHENTICATED, PERMISSION_DENIED}, name


def test_what_changes_something_needs_a_writer():
    reading = ("Get", "List", "Count", "Run", "BatchGet", "Query", "Aggregate", "Watch", "Pick")
    beside = {"BeginTransaction", "Rollback", "ExecutePipeline", "PartitionQuery", "UserExists"}
    for name, needs in methods().items():
        method = name.partition("/")[2]
        if name.startswith(("crossfade.v1.Admin/", "crossfade.v1.Jobs/")):
            assert needs.role is Role.ADMIN
        elif method.startswith(reading) or method in beside:
            assert needs.role is Role.READER, name
        else:
            assert needs.role is Role.WRITER, name
    assert needs_of("crossfade.v1.Jobs/NewMethod").role is Role.ADMIN


async def test_health_and_reflection_stay_open(address):
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_clients_show_their_tokens():
    shown = [READER]
    async with guarded(access={"tokens": f"a reader {READER}, b writer {WRITER}"}) as sidecar:
        async with AsyncCrossfade(sidecar.address, token=lambda: shown[0]) as client:
            with pytest.raises(PermissionDeniedError, match="needs the role writer"):
                await client.set("tasks/1", {"a": 1})
            shown[0] = WRITER  # rotated meanwhile
            await client.set("tasks/1", {"a": 1})
            shown[0] = "nobody-0123456789"
            with pytest.raises(UnauthenticatedError):
                await client.get("tasks/1")
        with Crossfade(sidecar.address, token=READER) as waiting:
            found = await asyncio.to_thread(waiting.get, "tasks/1")
            assert found.fields == {"a": 1}
        async with AsyncViolet(sidecar.address) as adapter:
            with pytest.raises(UnauthenticatedError, match="no token"):
                await adapter.get_task("1")


async def test_tokens_are_rotated_under_a_running_sidecar(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(TOKENS)
    telemetry = Telemetry()
    async with guarded(access={"tokens_file": file}, telemetry=telemetry) as sidecar:

        async def refused() -> bool:
            method = "crossfade.v1.Crossfade/GetDocument"
            return await ask(sidecar.address, method, bearer(READER)) is UNAUTHENTICATED

        async def problem() -> bool:
            return str(file) in (await sidecar.status()).settings_problem

        assert not await refused()
        file.write_text("[[token]]")
        await eventually(problem)
        assert telemetry.read_gauge(TOKENS_REFUSED) == {(): 1.0}
        assert not await refused()
        file.write_text(TOKENS.replace(READER, "another-0123456789"))
        await eventually(refused)
        assert not await problem()
        assert telemetry.counts(DENIED)["crossfade.v1.Crossfade/GetDocument", "UNAUTHENTICATED"]


async def test_the_audit_trail_knows_the_token(postgres_database: MakeDatabase):
    access = {"tokens": f"operator admin {ADMIN}", "trust": ("loopback",), "trusted_role": "admin"}
    async with (
        running(await postgres_database(), access=access) as stack,
        grpc.aio.insecure_channel(stack.sidecar.address) as channel,
    ):
        admin: Any = admin_pb2_grpc.AdminStub(channel)
        for who, metadata in (("", bearer(ADMIN)), ("me@here", bearer(ADMIN)), ("me@here", ())):
            request = admin_pb2.SetTrafficRequest(read_percent=0.0, who=who)
            await admin.SetTraffic(request, metadata=metadata)
        trail = await admin.ListAudit(admin_pb2.ListAuditRequest(limit=3))
        assert [entry.who for entry in trail.entries] == [
            "me@here",
            "me@here (token operator)",
            "operator",
        ]


# --- the genuine client --------------------------------------------------------------------------


async def read_and_write(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application that knows of nothing but FIRESTORE_EMULATOR_HOST."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
    client = firestore.AsyncClient(project="test", credentials=AnonymousCredentials())
    await client.document("tasks/1").set({"a": 1}, timeout=5)
    return (await client.document("tasks/1").get(timeout=5)).to_dict()


async def test_an_unchanged_application_is_let_in_where_the_transport_is_trusted(
    tmp_path, monkeypatch
):
    access = {"tokens": f"operator admin {ADMIN}", "trust": ("unix",)}
    server = {"socket": tmp_path / "s"}
    async with guarded(access=access, server=server) as sidecar:
        assert await read_and_write(f"unix:{tmp_path}/s", monkeypatch) == {"a": 1}
        with pytest.raises(Exception, match="not known"):  # over TCP it shows "Bearer owner"
            await read_and_write(sidecar.address, monkeypatch)
        here, name = f"unix:{tmp_path}/s", "crossfade.v1.Admin/GetStatus"
        assert await ask(here, name) is PERMISSION_DENIED
        assert await ask(here, name, bearer(ADMIN)) is grpc.StatusCode.OK
        assert await ask(here, name, bearer(READER)) is UNAUTHENTICATED


async def test_loopback_is_trusted_only_where_it_is_said(monkeypatch):
    access = {"tokens": f"operator admin {ADMIN}", "trust": ("loopback",)}
    async with guarded(access=access) as sidecar:
        assert await read_and_write(sidecar.address, monkeypatch) == {"a": 1}
