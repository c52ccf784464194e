"""The sample has violet's quirks, and the traffic's checks find what is wrong."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest

from crossfade.document import (
    Document,
    check_document,
    check_document_path,
    collection_id,
    identical,
    walk,
)
from crossfade_client import AsyncCrossfade, CommitResult, Snapshot, WriteResult
from tests.fake_sidecar import Failure, FakeSidecar
from violet import mix, sample, traffic
from violet.sample_tasks import STATUSES, new_task

SEED, TASKS = 7, 200


@pytest.fixture(scope="module")
def database() -> dict[str, dict[str, Any]]:
    return dict(sample.documents(SEED, TASKS))


@pytest.fixture(scope="module")
def by_collection(database) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for path, fields in database.items():
        found[collection_id(path)].append(fields)
    return found


def test_every_document_is_legal_and_every_path_is_there_once(database):
    paths = [path for path, _ in sample.documents(SEED, TASKS)]
    assert len(paths) == len(set(paths)) == len(database)
    for path, fields in database.items():
        check_document_path(path)
        check_document(path, fields)


def test_a_seed_is_a_database(database):
    assert all(identical(fields, database[path]) for path, fields in sample.documents(SEED, TASKS))
    assert dict(sample.documents(SEED + 1, TASKS)).keys() != database.keys()


def test_the_keys_lead_to_documents(database):
    keys = sample.keys(SEED, TASKS)
    assert len(keys.tasks) == TASKS
    assert all(f"tasks/{task_id}" in database for task_id in keys.tasks)
    assert all(f"miner_status/{uid}" in database for uid in keys.miners)
    for api_key in keys.api_keys:
        assert f"users/{database[f'api_keys/{api_key}']['user_id']}" in database
    for api_key in keys.dangling:
        assert f"users/{database[f'api_keys/{api_key}']['user_id']}" not in database
    holders = [
        fields["user_id"] for path, fields in database.items() if path.startswith("api_keys/")
    ]
    assert len(holders) == len(set(holders)) + 1  # one user has two keys


def test_every_collection_of_the_catalogue_is_there(by_collection, database):
    assert set(by_collection) >= {
        "tasks", "files", "text_content", "miners", "miner_status", "task_assignments",
        "miner_responses", "validators", "evaluations", "task_evaluations", "validator_reports",
        "miner_consensus", "users", "user_emails", "api_keys", "voices", "system_metrics",
        "task_metrics", "final_results", "archived_tasks", "audio_chunks",
    }  # fmt: skip
    assert sum(path.endswith("/_init") for path in database) == 9
    assert "tasks/sample_task_001" in database


def types(documents: list[dict[str, Any]], name: str) -> set[str]:
    return {type(d[name]).__name__ if name in d else "absent" for d in documents}


def test_tasks_have_their_quirks(by_collection):
    tasks = [task for task in by_collection["tasks"] if "task_id" in task]
    assert {task["status"] for task in tasks} == set(STATUSES)
    assert types(tasks, "required_miner_count") == {"int", "float"}
    assert types(tasks, "estimated_completion_time") == {"int", "float", "absent"}
    assert types(tasks, "callback_url") == {"NoneType", "absent"}
    assert types(tasks, "model_id") == {"NoneType", "str", "absent"}
    assert types(tasks, "miner_responses") == {"list", "dict", "absent"}
    assert types(tasks, "input_file") == {"dict", "absent"}
    assert types(tasks, "input_file_id") == {"str", "absent"}
    assert [] in [task.get("assigned_miners") for task in tasks]
    files = [task["input_file"] for task in tasks if "input_file" in task]
    locations = {file.get("storage_location") for file in files}
    assert locations == {
        "cloud_storage", "firestore", "local", "r2", "database", "database_chunked", None,
    }  # fmt: skip
    assert types(files, "file_id") == {"str", "absent"}
    assert types(files, "public_url") == {"str", "NoneType", "absent"}
    assert any("chunks_cleaned_at" in file for file in files)
    assert any("input_file.chunks_cleaned" in task for task in tasks)
    assert max(len(task.get("input_text", {}).get("text", "")) for task in tasks) > 4_000


def shape(response: dict[str, Any]) -> str:
    if "response" in response:
        return "flush"
    return "es" if "response_id" in response else "immediate"


def test_responses_have_three_shapes_also_within_one_task(by_collection):
    arrays = [
        t["miner_responses"]
        for t in by_collection["tasks"]
        if isinstance(t.get("miner_responses"), list)
    ]
    shapes = [{shape(response) for response in array} for array in arrays]
    assert set().union(*shapes) == {"es", "immediate", "flush"}
    assert max(len(kinds) for kinds in shapes) == 3


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_numbers_that_are_none_are_there(by_collection):
    doubles = [v for task in by_collection["tasks"] for v in leaves(task) if isinstance(v, float)]
    assert any(map(math.isnan, doubles))
    assert {math.inf, -math.inf} <= set(doubles)


def test_miner_status_has_every_variant(by_collection):
    status = [fields for fields in by_collection["miner_status"] if "version" not in fields]
    assert types(status, "task_type_specialization") == {
        "dict",
        "str",
        "list",
        "NoneType",
        "absent",
    }
    assert types(status, "last_seen") == {"str", "datetime", "absent"}
    assert types(status, "max_capacity") == {"int", "float", "absent"}
    assert types(status, "current_load") == {"int", "float", "absent"}
    assert types(status, "uid") == {"int", "absent"}
    reporters = [item for fields in status for item in fields.get("reported_by_validators", ())]
    assert {type(item) for item in reporters} == {int, str}


def test_files_have_five_shapes_and_the_remains_of_a_move(by_collection):
    files = [fields for fields in by_collection["files"] if "version" not in fields]
    assert len({frozenset(fields) for fields in files}) == 6
    assert types(files, "content") == {"str", "absent"}
    assert min(len(fields) for fields in files) == 3


def test_miner_keys_are_only_on_miners_and_validators(by_collection):
    users = [fields for fields in by_collection["users"] if "role" in fields]
    assert {u["role"] for u in users} == {"client", "miner", "validator", "admin"}
    assert all(("hotkey" in u) is (u["role"] in {"miner", "validator"}) for u in users)
    assert types(users, "hotkey") == {"str", "NoneType", "absent"}
    assert types(users, "last_login") == {"datetime", "NoneType"}


def test_times_are_aware_and_in_microseconds(database):
    for fields in database.values():
        for _, value in walk(fields):
            if isinstance(value, datetime):
                assert value.utcoffset() is not None


# --- the mix -------------------------------------------------------------------------------------


def test_the_mix_is_a_closed_household():
    operations = mix.operations(Random(1), sample.keys(SEED, TASKS))
    seen: dict[type, int] = defaultdict(int)
    made: set[str] = set()
    for _ in range(5_000):
        operation = next(operations)
        seen[type(operation)] += 1
        if isinstance(operation, mix.CreateTask):
            made.add(operation.task_id)
        elif isinstance(operation, mix.DeleteTask):
            made.remove(operation.task_id)
        elif isinstance(operation, mix.AssignTask | mix.AddResponse | mix.SetStatus):
            assert operation.task_id in made
        assert len(made) <= mix.MAX_OWN + 1
    assert set(seen) == {*mix.WEIGHTS, mix.DeleteTask}
    assert seen[mix.GetTask] > seen[mix.ReportMiner] > seen[mix.ListTasks]
    left = {operation.task_id for operation in operations.clear()}
    assert left == made


def test_the_mix_depends_on_its_generator_alone():
    keys = sample.keys(SEED, TASKS)
    one, two, other = (mix.operations(Random(seed), keys) for seed in (1, 1, 2))
    first = [repr(next(one)) for _ in range(100)]
    assert first == [repr(next(two)) for _ in range(100)]
    assert first != [repr(next(other)) for _ in range(100)]


@pytest.fixture
async def sidecar():
    fake = FakeSidecar(page=50)
    fake.documents = {
        path: Document(path, fields, 1, 1) for path, fields in sample.documents(1, 40)
    }
    async with AsyncCrossfade(await fake.start()) as client:
        yield fake, client
    await fake.stop()


async def test_traffic_against_a_right_sidecar_finds_nothing(sidecar):
    fake, client = sidecar
    before = dict(fake.documents)
    tally = traffic.Tally()
    operations = mix.operations(Random(3), sample.keys(1, 40))
    await traffic.drive(client, operations, tally, until=lambda: tally.done.total() >= 400)
    assert (tally.wrong, tally.problems, dict(tally.errors)) == (0, [], {})
    assert set(tally.done) == {kind.__name__ for kind in (*mix.WEIGHTS, mix.DeleteTask)}
    assert fake.documents.keys() == before.keys()
    changed = {path for path, document in fake.documents.items() if document != before[path]}
    assert {collection_id(path) for path in changed} == {"miner_status"}


async def test_errors_are_counted_and_nothing_is_expected_afterwards(sidecar):
    fake, client = sidecar
    import grpc

    fake.failures = [Failure("Commit", grpc.StatusCode.ABORTED, times=20)]
    tally = traffic.Tally()
    operations = mix.operations(Random(3), sample.keys(1, 40))
    await traffic.drive(client, operations, tally, until=lambda: tally.done.total() >= 400)
    assert tally.errors == {"ABORTED": 20}
    assert tally.problems == []


async def test_live_traffic_goes_on_until_cancelled_and_tells_of_wrong_answers(sidecar):
    import asyncio

    from structlog.testing import capture_logs

    fake, client = sidecar
    damage(fake, "tasks/" + sample.keys(1, 40).tasks[0], status=None)
    with capture_logs() as lines:
        task = asyncio.create_task(traffic.run(client, seed=2, tasks=40, rate=10_000))
        while fake.calls["Commit"] < 100:  # noqa: ASYNC110 (the fake has no event for it)
            await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    told = {line["problem"] for line in lines if line.get("action") == "wrong_answer"}
    assert told
    assert all("status" in problem or "is not" in problem for problem in told)


async def prepared(client, *operations):
    for operation in operations:
        assert await traffic.run_operation(client, operation) == []


def damage(fake: FakeSidecar, path: str, **fields: Any) -> None:
    old = fake.documents[path]
    fake.documents[path] = Document(path, old.fields | fields, 1, 1)


async def test_the_checks_find_what_is_wrong(sidecar):
    fake, client = sidecar
    keys = sample.keys(1, 40)
    task = mix.CreateTask("own", new_task(Random(1), "own"))
    await prepared(
        client, task, mix.AssignTask("own", (48, 2)), mix.AddResponse("own", {"miner_uid": 2})
    )
    right = mix.GetTask("own", expected=mix.Expected("processing", 1, (48, 2)))
    poll = mix.PollTasks(48, frozenset({"own"}))
    await prepared(client, right, poll, mix.ListTasks("processing"))

    async def problems(operation: mix.Operation) -> str:
        return json.dumps(await traffic.run_operation(client, operation))

    assert "was deleted, and is there" in await problems(mix.GetTask("own", present=False))
    assert "is missing" in await problems(mix.GetTask("none"))
    assert "response_count" in await problems(
        mix.GetTask("own", expected=mix.Expected("processing", 2, (48, 2)))
    )
    assert "missing from its miner's poll" in await problems(mix.PollTasks(101, frozenset({"own"})))
    damage(fake, "tasks/own", status=None)
    assert "own: status is not right" in await problems(mix.GetTask("own"))

    api_key = keys.api_keys[0]
    user_id = fake.documents[f"api_keys/{api_key}"].fields["user_id"]
    await prepared(client, mix.GetUserByApiKey(api_key))
    await prepared(client, mix.GetUserByApiKey(keys.dangling[0], dangling=True))
    assert "dangling index led" in await problems(mix.GetUserByApiKey(api_key, dangling=True))
    damage(fake, f"users/{user_id}", role="other")
    assert "role is not right" in await problems(mix.GetUserByApiKey(api_key))
    del fake.documents[f"users/{user_id}"]
    assert "user of an index is missing" in await problems(mix.GetUserByApiKey(api_key))
    assert "an index is missing" in await problems(mix.GetUserByApiKey("none"))


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ((3, 0, 0), None),
        ((3, 1, 1), None),
        ((0, 0, 0), "did not rise"),
        ((3.0, 0, 0), "did not rise"),
        ((3, 0, 1), "one request"),
        ((3, 90, 90), "one request"),
        ((3, 0), "one request"),
    ],
)
def test_the_answer_to_a_report_is_judged(results, problem):
    moment = datetime.fromisoformat("2025-12-09T00:00:00+00:00")
    count, *seconds = results
    times = [moment - timedelta(seconds=each) for each in seconds]
    performance = traffic.perform(mix.ReportMiner(48, {"uid": 48}))
    next(performance)
    written = WriteResult(moment, (count, *times))
    with pytest.raises(StopIteration) as end:
        performance.send(CommitResult(moment, (written,)))
    assert problem in str(end.value.value) if problem else end.value.value == []


@pytest.mark.parametrize(
    ("operation", "answer", "problem"),
    [
        (mix.PollTasks(48), {"assigned_miners": [2], "status": "assigned"}, "not assigned to it"),
        (mix.PollTasks(48), {"assigned_miners": [48], "status": "failed"}, "status was not asked"),
        (mix.ListTasks("done"), {"status": "failed"}, "status was not asked"),
        (mix.ListTasks("done", limit=0), {"status": "done"}, "more than the limit"),
    ],
)
def test_answers_to_queries_are_judged(operation, answer, problem):
    moment = datetime.fromisoformat("2025-12-09T00:00:00+00:00")

    def answered(*names: str) -> list[str]:
        performance = traffic.perform(operation)
        next(performance)
        try:
            performance.send([Snapshot(f"tasks/{name}", answer, moment, moment) for name in names])
        except StopIteration as end:
            return list(end.value)
        raise AssertionError("a query has one step")

    assert problem in str(answered("a"))
    assert "order of ids" in str(answered("b", "a"))
    assert "order of ids" in str(answered("a", "a"))
    assert "order of ids" not in str(answered("a", "b"))
