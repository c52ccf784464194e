"""Archives: whole or nothing, exact, resumable; and back, by the way that the stage asks for."""

import asyncio
import gzip
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade import admin_commands, archive_commands
from crossfade.admin_commands import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    TOKEN_FILE_VARIABLE,
)
from crossfade.archived import from_line
from crossfade.budget import Budget
from crossfade.cli import main
from crossfade.content import fields_bytes
from crossfade.document import Document, is_own
from crossfade.errors import FailedPrecondition, ResourceExhausted, Unavailable
from crossfade.jobs import archive as archiving
from crossfade.jobs import brake as brakes
from crossfade.jobs.archive import (
    Source,
    archive,
    documents_of,
    pages_of_firestore,
    patient,
    verified,
)
from crossfade.jobs.backfill import backfill
from crossfade.jobs.brake import Brake
from crossfade.jobs.effort import OF_BUDGET
from crossfade.jobs.pace import Pressure
from crossfade.jobs.restore import Outcome, Restorer, decide
from crossfade.plan import Stage, StoreName
from crossfade.rpc import firestore_v1
from crossfade.rpc.firestore_v1 import faults
from crossfade.store import Intent
from crossfade.stores.firestore import connect
from crossfade.write import Write
from crossfade_api.v1 import document_pb2 as pb
from tests import strategies
from tests.certificates import authority, issued_by
from tests.days import Days
from tests.guarded import READER, TOKENS, WRITER
from tests.sidecar import DATABASE, Running, eventually, running
from tests.validated import validated


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(archiving, "PAGE", 100)


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


def generated(count: int) -> dict[str, dict[str, Any]]:
    """Documents of the generators, by path."""
    found: dict[str, dict[str, Any]] = {}

    @given(st.lists(st.tuples(strategies.paths(), strategies.fields()), max_size=8))
    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def collect(drawn: list[tuple[str, dict[str, Any]]]) -> None:
        for number, (path, fields) in enumerate(drawn):
            found[f"{path}-{len(found)}-{number}"] = fields

    collect()
    return found


async def put(stack: Running, documents: dict[str, dict[str, Any]]) -> None:
    items = list(documents.items())
    for start in range(0, len(items), 100):
        writes = [Write(path, fields) for path, fields in items[start : start + 100]]
        await stack.direct.commit(writes, timeout=30)


async def archived(stack: Running, directory: Path, file_bytes: int = 5_000) -> dict[str, Any]:
    source = Source(StoreName.FIRESTORE, DATABASE.name)

    def pages(after: str | None) -> archiving.Pages:
        return pages_of_firestore(stack.direct, DATABASE, after, timeout=30)

    async for _ in archive(directory, source, pages, file_bytes=file_bytes):
        pass
    return verified(directory)


async def held(store: Any, paths: list[str]) -> dict[str, bytes | None]:
    """The exact fields of documents."""
    found = {}
    for start in range(0, len(paths), 100):
        reading = await store.get(paths[start : start + 100], timeout=30)
        for stored in reading.documents:
            data = stored.data
            found[stored.path] = data and fields_bytes(pb.Document.FromString(data))
    return found


async def run(restorer: Restorer, directory: Path) -> Any:
    async for _ in restorer.run(documents_of(directory, verified(directory))):
        pass
    return restorer.restored


async def test_any_document_comes_back_in_both_stores(url, tmp_path):
    documents = generated(80)
    assert len(documents) > 200
    async with running(url) as stack:
        await put(stack, documents)
        before = await held(stack.direct, list(documents))
        manifest = await archived(stack, tmp_path / "a")
        assert manifest["documents"] == len(documents)
        assert len(manifest["files"]) > 2
        await stack.direct.commit([Write(path, None) for path in documents], timeout=30)
        found = await run(Restorer(stack.direct, DATABASE), tmp_path / "a")
        assert found.counts[Outcome.CREATED] == len(documents)
        assert await held(stack.direct, list(documents)) == before
        again = await run(Restorer(stack.direct, DATABASE), tmp_path / "a")
        assert again.counts[Outcome.SAME] == len(documents)

        postgres: Any = stack.sidecar.stores[StoreName.POSTGRESQL]
        await stack.sql.execute(
            "update crossfade.control set stage = 'complete', authority = 'postgresql'"
        )
        epoch = await stack.sql.fetchval("select epoch from crossfade.control")
        restorer = Restorer(postgres, DATABASE, intent=lambda: Intent("i", epoch, mirrored=False))
        found = await run(restorer, tmp_path / "a")
        assert found.counts[Outcome.CREATED] == len(documents)
        back = await held(postgres, list(documents))
        # PostgreSQL keeps of a NaN that it is one.
        nan = {path for path in documents if "nan" in repr(documents[path])}
        assert {path for path in documents if back[path] != before[path]} <= nan
        assert len(nan) < len(documents) / 2
        own = postgres.ranges.everything(None, timeout=30, chunk=50)
        assert sum([len(each) async for each, _ in own]) == len(documents)


async def test_digests_are_those_of_a_validation(url, tmp_path):
    async with running(url, Stage.DUAL_WRITE) as stack:
        await put(stack, {f"{name}/{n}": {"n": n} for name in ("a", "b") for n in range(20)})
        await stack.copy()
        report = await validated(stack)
        manifest = await archived(stack, tmp_path / "a")
        for each in report["by_collection"]:
            name = each["collection"]
            assert manifest["collections"][name]["digest"] == each["digests"]["firestore"]


async def test_an_archive_that_was_broken_off_goes_on(url, tmp_path):
    async with running(url) as stack:
        await put(stack, {f"a/{n:04}": {"n": n} for n in range(1_200)})
        await stack.direct.commit([Write("_crossfade_x/1", {"n": 1})], timeout=5)
        source = Source(StoreName.FIRESTORE, DATABASE.name)
        asked = []

        def pages(after: str | None) -> archiving.Pages:
            asked.append(after)
            return pages_of_firestore(stack.direct, DATABASE, after, timeout=30)

        directory = tmp_path / "a"
        broken: Any = archive(directory, source, pages, file_bytes=10_000)
        async for count in broken:
            if count > 600:
                break
        await broken.aclose()
        assert not (directory / "manifest.json").exists()
        (directory / "documents-00009.jsonl.gz").write_bytes(b"written, and not noted")
        with pytest.raises(FailedPrecondition, match="no whole archive"):
            verified(directory)
        async for _ in archive(directory, source, pages, file_bytes=10_000):
            pass
        manifest = verified(directory)
        assert asked[0] is None
        assert asked[1] is not None
        found = list(documents_of(directory, manifest))
        assert [document.path for document in found] == [f"a/{n:04}" for n in range(1_200)]
        words = ("sha256sum", "--quiet", "-c", "SHA256SUMS")
        checking = await asyncio.create_subprocess_exec(*words, cwd=directory)
        assert await checking.wait() == 0
        other = archive(directory, Source(StoreName.POSTGRESQL, DATABASE.name), pages)
        with pytest.raises(FailedPrecondition, match="something else"):
            await anext(other)


async def test_what_was_tampered_with_is_not_restored(url, tmp_path):
    async with running(url) as stack:
        await put(stack, {"a/1": {"n": 1}, "a/2": {"n": 2}})
        manifest = await archived(stack, tmp_path)
    path = tmp_path / manifest["files"][0]["name"]
    lines = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(lines[0] + b"\n"))
    with pytest.raises(FailedPrecondition, match="its digest is another"):
        verified(tmp_path)
    path.unlink()
    with pytest.raises(FailedPrecondition, match="is missing"):
        verified(tmp_path)


# --- what a restore may do ---------------------------------------------------------------------


def test_what_becomes_of_a_document():
    old, new = Document("a/1", {"n": 1}, 1, 5), Document("a/1", {"n": 2}, 1, 9)
    assert decide(old, None, overwrite=False) == (
        Outcome.CREATED,
        Write("a/1", {"n": 1}, exists=False),
    )
    assert decide(old, Document("a/1", {"n": 1}, 1, 9), overwrite=False)[0] is Outcome.SAME
    assert decide(old, new, overwrite=False) == (Outcome.NEWER, None)
    assert decide(old, new, overwrite=True) == (
        Outcome.REPLACED,
        Write("a/1", {"n": 1}, update_time=9),
    )
    assert decide(new, old, overwrite=False)[0] is Outcome.REPLACED


async def test_newer_documents_are_refused_unless_they_are_to_be_overwritten(url, tmp_path):
    async with running(url) as stack:
        await put(stack, {"a/1": {"n": 1}, "a/2": {"n": 2}, "a/3": {"n": 3}})
        await archived(stack, tmp_path)
        await put(stack, {"a/1": {"n": "newer"}})
        await stack.direct.commit([Write("a/2", None)], timeout=5)
        found = await run(Restorer(stack.direct, DATABASE), tmp_path)
        assert (found.counts["newer"], found.counts["created"], found.counts["same"]) == (1, 1, 1)
        assert found.refused == ["a/1"]
        assert not found.ok
        found = await run(Restorer(stack.direct, DATABASE, overwrite=True), tmp_path)
        assert (found.counts["replaced"], found.ok) == (1, True)


async def test_the_commands_take_the_way_that_the_stage_asks_for(
    url, tmp_path, monkeypatch, capsys
):
    async def typed(*words: str) -> tuple[int, str, str]:
        """The exit code, the last line of stdout, and stderr."""
        code = await asyncio.to_thread(main, words)
        told = capsys.readouterr()
        return code, (told.out.splitlines() or [""])[-1], told.err

    async with running(url, Stage.DUAL_WRITE) as stack:
        await put(stack, {f"tasks/{n}": {"task_id": str(n)} for n in range(30)})
        await stack.copy()
        monkeypatch.setenv("DATABASE_URL", stack.url)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", stack.firestore_server.address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", DATABASE.project)
        directory = str(tmp_path / "a")
        assert (await typed("archive", directory))[:2] == (
            0,
            f"30 documents of firestore are in {directory}",
        )
        (line, *_) = gzip.decompress(
            (tmp_path / "a" / "documents-00001.jsonl.gz").read_bytes()
        ).splitlines()
        assert not is_own(from_line(line).path)
        await stack.client.delete("tasks/1")
        await stack.client.delete("tasks/2")
        code, _, err = await typed("restore", directory, "--to", "postgresql")
        assert code == 2
        assert "firestore decides" in err
        code, _, err = await typed("restore", directory, "--to", "firestore")
        assert code == 2
        assert "through a sidecar" in err
        through = ("--address", stack.sidecar.address)
        code, out, _ = await typed("restore", directory, "--to", "firestore", *through)
        assert (code, out) == (0, "28 same, 2 created, 0 replaced, 0 newer, 0 moved")
        await stack.settled(30.0)
        assert (await validated(stack))["equal"]

        await stack.stage("shadow")
        await stack.stage("live")
        await stack.stage("complete")
        await stack.client.delete("tasks/3")
        code, _, err = await typed("restore", directory, "--to", "firestore")
        assert code == 2
        assert "postgresql decides" in err
        code, out, _ = await typed("restore", directory, "--to", "postgresql")
        assert (code, out) == (0, "29 same, 1 created, 0 replaced, 0 newer, 0 moved")
        assert (await typed("archive", str(tmp_path / "b"), "--from", "authority"))[0] == 0
        manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
        assert (manifest["source"], manifest["documents"]) == ("postgresql", 30)
        assert manifest["stages"] == {"default": "complete"}


async def test_without_a_migration_firestore_is_written_to_directly(url, tmp_path, monkeypatch):
    async with running(url) as stack:
        monkeypatch.delenv("DATABASE_URL", raising=False)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", stack.firestore_server.address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", DATABASE.project)
        await put(stack, {"a/1": {"n": 1}})
        words = ("archive", str(tmp_path / "a"))
        assert await asyncio.to_thread(main, words) == 0
        await stack.direct.commit([Write("a/1", None)], timeout=5)
        back = ("restore", str(tmp_path / "a"), "--to", "firestore")
        assert await asyncio.to_thread(main, back) == 0
        assert (await held(stack.direct, ["a/1"]))["a/1"]
        # Where commits have to be mirrored, nobody writes past the sidecars.
        await stack.stage("dual_write")
        assert await asyncio.to_thread(main, back) == 2


async def test_a_restore_goes_through_a_sidecar_that_asks_who_calls(
    url, tmp_path, monkeypatch, capsys
):
    """Over TLS, with a token or with a certificate; reads and commits are of several kinds of
    call, and each of them has to say who calls."""
    ca = authority()
    files = {}
    for name in ("sidecar", "proxy"):
        files[name] = {"cert": tmp_path / f"{name}.pem", "key": tmp_path / f"{name}.key"}
        issued_by(ca, name).write(*files[name].values())
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS + '[[token]]\nname = "p"\nrole = "writer"\ncertificate = "proxy"\n')
    (tmp_path / "token").write_text(WRITER)
    (tmp_path / "reader").write_text(READER)
    tls = files["sidecar"] | {"client_ca": tmp_path / "ca.pem", "socket": tmp_path / "s"}
    async with running(
        url, Stage.DUAL_WRITE, server_settings=tls, access={"tokens_file": tokens}
    ) as stack:
        await put(stack, {f"tasks/{n}": {"task_id": str(n)} for n in range(8)})
        monkeypatch.setenv("DATABASE_URL", stack.url)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", stack.firestore_server.address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", DATABASE.project)
        await archived(stack, tmp_path / "a")
        copying = stack.sidecar.admin.copying["default"]
        assert [step.done async for step in backfill(copying)][-1]
        words = ("restore", str(tmp_path / "a"), "--to", "firestore", "--address")
        over_tls = (*words, stack.sidecar.address, "--ca", str(tmp_path / "ca.pem"))
        own = [f"--client-{name}={path}" for name, path in files["proxy"].items()]
        over_socket = (*words, f"unix:{tmp_path}/s", "--token-file")

        async def typed(*words: str) -> tuple[int, str]:
            """The exit code, and what is said: the reason, or what came of it."""
            for variable in (CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE, TOKEN_FILE_VARIABLE):
                monkeypatch.setenv(variable, "")
            code = await asyncio.to_thread(main, words)
            told = capsys.readouterr()
            return code, told.err if code else told.out.splitlines()[-1]

        await stack.direct.commit([Write("tasks/1", None)], timeout=5)
        with monkeypatch.context() as impatient:
            impatient.setattr(admin_commands, "CONNECT_SECONDS", 0.3)
            code, said = await typed(*over_tls)
        assert (code, "no sidecar answers" in said) == (2, True)
        code, said = await typed(*over_socket, str(tmp_path / "reader"))
        assert (code, "PERMISSION_DENIED" in said) == (2, True), said
        assert (await held(stack.direct, ["tasks/1"]))["tasks/1"] is None
        came = "7 same, 1 created, 0 replaced, 0 newer, 0 moved"
        assert await typed(*over_socket, str(tmp_path / "token")) == (0, came)
        await stack.direct.commit([Write("tasks/2", None)], timeout=5)
        code, said = await typed(*over_tls, *own, "--json")
        assert (code, json.loads(said)["restored"]["created"]) == (0, 1)
        await stack.settled(30.0)
        postgres: Any = stack.sidecar.stores[StoreName.POSTGRESQL]
        assert all((await held(postgres, ["tasks/1", "tasks/2"])).values()), "it is mirrored"


async def test_an_archive_keeps_its_rate_and_waits_for_the_next_days_budget(
    url, tmp_path, monkeypatch, capsys
):
    async with running(url, Stage.DUAL_WRITE) as stack:
        await put(stack, {f"tasks/{n:03}": {"n": n} for n in range(230)})
        now, kept = time.time(), Days()
        monkeypatch.setattr(brakes, "LOOK_SECONDS", 0.01)
        budget = Budget(100, kept, clock=lambda: now)
        brake = Brake(2_000.0, budget)
        source = Source(StoreName.FIRESTORE, DATABASE.name)

        def pages(after: str | None) -> archiving.Pages:
            return pages_of_firestore(stack.direct, DATABASE, after, timeout=30, brake=brake)

        done = 0

        async def through() -> None:
            nonlocal done
            async for count in archive(tmp_path / "a", source, pages):
                done = count

        task = asyncio.create_task(through())
        days = 0
        while not task.done() and days < 9:
            days += 1
            await budget.refill()
            await eventually(lambda: _waits_or_ends(brake, task), 20)
            assert done <= days * 100
            now += 86_400
            brake.waits_for = ""
        await task
        assert (days, done) == (3, 230)
        assert kept.given.total() >= 230

        began = time.monotonic()
        async for _ in archive(tmp_path / "b", source, slowly(stack, 1_000.0)):
            pass
        assert time.monotonic() - began > 0.1, "at this rate it takes a fifth of a second"

        monkeypatch.setenv("DATABASE_URL", stack.url)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", stack.firestore_server.address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", DATABASE.project)
        monkeypatch.setenv("CROSSFADE_SHADOW__DAILY_READS", "100000")
        capsys.readouterr()
        words = ("archive", str(tmp_path / "c"), "--json")
        assert await asyncio.to_thread(main, words) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        progress = [each for each in lines if "estimate" in each]
        assert (progress[-1]["documents"], lines[-1]["manifest"]["documents"]) == (230, 230)
        assert progress[-1]["estimate"] >= 230
        assert await stack.sql.fetchval("select reserved from crossfade.budget") >= 230
        monkeypatch.delenv("DATABASE_URL")
        assert await asyncio.to_thread(main, ("archive", str(tmp_path / "d"))) == 2
        assert "daily_reads is set" in capsys.readouterr().err
        words = ("archive", str(tmp_path / "d"), "--ignore-budget")
        assert await asyncio.to_thread(main, words) == 0


def slowly(stack: Running, rate: float) -> archiving.PagesFrom:
    brake = Brake(rate)
    return lambda after: pages_of_firestore(stack.direct, DATABASE, after, timeout=30, brake=brake)


async def _waits_or_ends(brake: Brake, task: asyncio.Task[None]) -> bool:
    return task.done() or brake.waits_for == OF_BUDGET


async def test_a_store_that_refuses_is_waited_for_by_an_archive_and_by_a_restore(
    url, tmp_path, monkeypatch, capsys
):
    """Some of the refusals come after the commit was done."""
    monkeypatch.setattr(archive_commands, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(brakes, "Pressure", partial(Pressure, pause=0.02))
    documents = {f"{name}/{n:03}": {"n": n} for name in "abc" for n in range(200)}
    async with running(url, Stage.OFF) as stack:
        await put(stack, documents)
        before = await held(stack.direct, list(documents))
        calm = await archived(stack, tmp_path / "calm")
        # Of this seed the look at the control document, before a restore begins, is answered.
        failing = faults.parse(None, ["0.4:RESOURCE_EXHAUSTED", "0.1:UNAVAILABLE"], 3)
        server = await firestore_v1.serve(stack.stores, "127.0.0.1", 0, failing)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", DATABASE.project)

        async def typed(*words: str) -> tuple[set[str], dict[str, Any]]:
            """What was waited for, and the last line."""
            assert await asyncio.to_thread(main, [*words, "--json"]) == 0
            told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            return {each["waits_for"] for each in told if "waits_for" in each}, told[-1]

        waits, last = await typed("archive", str(tmp_path / "refused"))
        assert "a store (RESOURCE_EXHAUSTED)" in waits
        assert last["manifest"]["collections"] == calm["collections"]
        for start in range(0, len(documents), 100):
            gone = [Write(path, None) for path in list(documents)[start : start + 100]]
            await stack.direct.commit(gone, timeout=30)
        waits, last = await typed("restore", str(tmp_path / "refused"), "--to", "firestore")
        assert "a store (RESOURCE_EXHAUSTED)" in waits
        # What was done without an answer is the same when it is read anew.
        counts = last["restored"]
        assert counts.pop("created") + counts.pop("same") == len(documents)
        assert set(counts.values()) == {0}
        assert await held(stack.direct, list(documents)) == before
        await server.stop(0)


async def test_a_store_that_stays_away_ends_an_archive_and_a_restore(tmp_path):
    nobody = connect(DATABASE, "127.0.0.1:1")
    for_long = Brake(patience=0.3)

    def pages(after: str | None) -> archiving.Pages:
        return pages_of_firestore(nobody, DATABASE, after, timeout=30, brake=for_long)

    source = Source(StoreName.FIRESTORE, DATABASE.name)
    with pytest.raises(Unavailable):
        await anext(archive(tmp_path / "a", source, patient(pages, for_long)))
    assert for_long.waits_for == "a store (UNAVAILABLE)"
    restorer = Restorer(nobody, DATABASE, brake=Brake(patience=0.3))
    with pytest.raises(Unavailable):
        await anext(restorer.run([Document("a/1", {"n": 1}, 1, 1)]))
    await nobody.close()


def test_a_quota_is_waited_for_without_an_end():
    brake = Brake(patience=0.0)
    for _ in range(3):
        brake.refused(ResourceExhausted("the day's quota"))
        time.sleep(0.001)
    with pytest.raises(Unavailable):
        brake.refused(Unavailable("and then it went away"))
    brake.spend(1, 0)
    assert brake.waits_for == ""
    brake.refused(Unavailable("just now"))
