"""What the official emulator offers over HTTP, with a real socket."""

import asyncio
import json
from typing import Any

import pytest

from crossfade.admin.emulator import EmulatorServer
from crossfade.document import Database
from crossfade.errors import ResourceExhausted
from crossfade.stores.memory import MemoryStores
from crossfade.write import Write

ONE, OTHER, THIRD = Database("violet"), Database("violet", "archive"), Database("ünï")
CLEAR = "/emulator/v1/projects/{}/databases/{}/documents"


async def ask(address: str, method: str, path: str, *headers: str) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body.decode()


@pytest.fixture
async def served():
    full = False

    def journal(*_: Any) -> None:
        if full:
            raise ResourceExhausted("commit: the journal cannot be written")

    def fill() -> None:
        nonlocal full
        full = True

    stores = MemoryStores(journal=journal)
    for database in (ONE, OTHER, THIRD):
        stores(database).apply_commit([Write(f"tasks/{number}", {}) for number in range(3)])
    server = EmulatorServer(stores, "127.0.0.1", 0)
    await server.start()
    yield stores, server.address, fill
    await server.stop()


def counts(stores: MemoryStores) -> list[int]:
    return [len(list(store.dump())) for store in stores]


async def test_it_is_there(served):
    _, address, _ = served
    assert await ask(address, "GET", "/") == (200, "Ok\n")


@pytest.mark.parametrize(
    ("project", "database", "left"),
    [
        ("violet", "(default)", [0, 3, 3]),
        ("violet", "%28default%29", [0, 3, 3]),
        ("violet", "archive", [3, 0, 3]),
        ("%C3%BCn%C3%AF", "(default)", [3, 3, 0]),
        ("nobody", "(default)", [3, 3, 3]),
    ],
)
async def test_a_database_is_cleared_and_no_other(served, project, database, left):
    stores, address, _ = served
    assert await ask(address, "DELETE", CLEAR.format(project, database)) == (200, "{}")
    assert counts(stores) == left
    # None is made by asking for it; commits go on.
    assert len(list(stores)) == 3
    stores(ONE).apply_commit([Write("tasks/1", {})])


async def test_all_are_cleared(served):
    stores, address, _ = served
    assert await ask(address, "POST", "/reset") == (200, "Resetting...\n")
    assert counts(stores) == [0, 0, 0]


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", CLEAR.format("violet", "(default)")), ("POST", "/reset")]
)
async def test_a_page_in_a_browser_cannot_clear_anything(served, method, path):
    stores, address, _ = served
    status, _ = await ask(address, method, path, "Origin: http://example.com")
    assert (status, counts(stores)) == (403, [3, 3, 3])


async def test_what_cannot_be_stored_is_said(served):
    stores, address, fill = served
    fill()
    status, body = await ask(address, "POST", "/reset")
    assert status == 503
    assert json.loads(body) == {"detail": "commit: the journal cannot be written"}
    assert counts(stores) == [3, 3, 3]


async def test_many_first_callers_at_once(served):
    _, address, _ = served
    answers = await asyncio.gather(*(ask(address, "GET", "/") for _ in range(10)))
    assert set(answers) == {(200, "Ok\n")}


async def test_one_that_nobody_asked_stops_as_well():
    server = EmulatorServer(MemoryStores(), "127.0.0.1", 0)
    await server.start()
    await asyncio.wait_for(server.stop(), 1)
    with pytest.raises(ConnectionRefusedError):
        await ask(server.address, "GET", "/")


async def test_a_taken_port_is_said_with_the_option():
    server = EmulatorServer(MemoryStores(), "127.0.0.1", 0)
    await server.start()
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(OSError, match=rf"port {port} of 127.0.0.1 is taken .* --http-port"):
        EmulatorServer(MemoryStores(), "127.0.0.1", port)
    await server.stop()
