"""violet.v1 with callers who come at once, through two sidecars, on both authorities: what
they leave is what some order of them, one by one, would have left.

Each test is one of the races that lost something in the application's own versions.
"""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from crossfade import wire
from crossfade.plan import Stage, StoreName
from crossfade_api.v1 import violet_pb2
from crossfade_client import Query
from crossfade_client._codec import decode_fields
from tests.sidecar import DATABASE, running
from tests.violet_caller import Caller, refused, settle, shown, values

pb = violet_pb2
MANY = 6


@pytest.fixture(scope="module", params=[Stage.SHADOW, Stage.LIVE], ids=str)
async def stacks(request, postgres_database):
    """Two sidecars on the same stores."""
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as world:
        await world.copy()
        async with world.another() as second:
            if request.param is Stage.LIVE:
                await world.settled()
                await world.stage("live")
            yield world, second


@pytest.fixture
async def callers(stacks):
    found = [Caller(stack) for stack in stacks]
    yield found
    for caller in found:
        await caller.channel.close()


@pytest.fixture
def turns(callers):
    """The sidecars in turn."""
    return itertools.cycle(callers)


@pytest.fixture
def violet(callers):
    return callers[0]


@pytest.fixture
def name():
    return uuid4().hex[:12]


@pytest.fixture
def uid(name):
    return int(name[:8], 16) * 10


async def make_task(violet: Caller, name: str, **fields: Any) -> None:
    await violet.set(f"tasks/{name}", **{"task_id": name, "status": "pending", **fields})


# --- assignment and load -----------------------------------------------------------------------


async def test_one_miner_is_assigned_to_a_task_once(violet, turns, name, uid):
    await make_task(violet, name)
    await violet.miner(uid)
    replies, failed = await settle(
        [
            next(turns).tasks.AssignTask(pb.AssignTaskRequest(task_id=name, miner_uids=[uid]))
            for _ in range(MANY)
        ]
    )
    assert failed == []
    assert [list(reply.assigned) for reply in replies].count([uid]) == 1
    task = await violet.fields(f"tasks/{name}")
    assert task["assigned_miners"] == [uid]
    assert [each["miner_uid"] for each in task["task_assignments"]] == [uid]
    assert await violet.loads(uid) == [1]


async def test_a_miner_never_gets_more_tasks_than_it_can_take(violet, turns, name, uid):
    await violet.miner(uid, max_capacity=2)
    names = [f"{name}-{index}" for index in range(MANY)]
    for each in names:
        await make_task(violet, each)
    replies, failed = await settle(
        [
            next(turns).tasks.AssignTask(pb.AssignTaskRequest(task_id=each, miner_uids=[uid]))
            for each in names
        ]
    )
    assert failed == []
    assert sum(len(reply.assigned) for reply in replies) == 2
    assert {r.reason for reply in replies for r in reply.refused} == {"capacity"}
    assert await violet.loads(uid) == [2]


async def test_a_task_never_gets_more_miners_than_it_may_have(violet, turns, name, uid):
    await make_task(violet, name)
    miners = [uid + index for index in range(MANY)]
    replies, failed = await settle(
        [
            next(turns).tasks.AssignTask(
                pb.AssignTaskRequest(task_id=name, miner_uids=[each], max_count=2)
            )
            for each in miners
        ]
    )
    assert failed == []
    assigned = [each for reply in replies for each in reply.assigned]
    task = await violet.fields(f"tasks/{name}")
    assert len(assigned) == 2
    assert sorted(task["assigned_miners"]) == sorted(assigned)
    assert task["actual_miner_count"] == 2


async def test_auto_assignments_at_once_share_the_miners(violet, turns, name, uid):
    kind = f"kind {name}"
    for index in range(3):
        await violet.miner(uid + index, max_capacity=1, task_type_specialization=[kind])
    names = [f"{name}-{index}" for index in range(4)]
    for each in names:
        await make_task(violet, each, task_type=kind)
    replies, failed = await settle(
        [
            next(turns).tasks.AutoAssignTask(pb.AutoAssignTaskRequest(task_id=each, count=1))
            for each in names
        ]
    )
    assert failed == []
    assigned = [each for reply in replies for each in reply.assigned]
    assert len(assigned) == len(set(assigned))
    # Miners of other tests take tasks of every kind.
    assert {uid, uid + 1, uid + 2} <= set(assigned)
    assert await violet.loads(uid, uid + 1, uid + 2) == [1, 1, 1]


async def test_the_same_request_is_done_once_however_often_it_comes(violet, turns, name, uid):
    await make_task(violet, name)
    await violet.miner(uid)
    assign = pb.AssignTaskRequest(request_id=f"a{name}", task_id=name, miner_uids=[uid])
    adjust = pb.AdjustMinerLoadRequest(request_id=f"l{name}", uid=uid, delta=2)
    respond = pb.AddMinerResponseRequest(request_id=f"r{name}", task_id=f"{name}b", miner_uid=1)
    seen = pb.MarkTaskSeenRequest(request_id=f"s{name}", task_id=f"{name}c", validator="v")
    create = pb.CreateTaskRequest(request_id=f"c{name}", task_id=f"{name}d")
    delete = pb.TaskRequest(request_id=f"d{name}", task_id=f"{name}e")
    for letter in "bce":
        await make_task(violet, f"{name}{letter}")
    replies, failed = await settle(
        [next(turns).tasks.AssignTask(assign) for _ in range(3)]
        + [next(turns).miners.AdjustMinerLoad(adjust) for _ in range(3)]
        + [next(turns).tasks.AddMinerResponse(respond) for _ in range(3)]
        + [next(turns).tasks.MarkTaskSeen(seen) for _ in range(3)]
        + [next(turns).tasks.CreateTask(create) for _ in range(3)]
        + [next(turns).tasks.DeleteTask(delete) for _ in range(3)]
    )
    assert failed == []
    assert await violet.loads(uid) == [3]
    # Whoever asks again hears what the first one did.
    assert [list(reply.assigned) for reply in replies[:3]] == [[uid]] * 3
    assert [reply.outcome for reply in replies[6:9]] == ["accepted"] * 3
    assert [reply.first for reply in replies[9:12]] == [True] * 3
    assert [shown(reply)["task_id"] for reply in replies[12:15]] == [f"{name}d"] * 3
    assert [reply.existed for reply in replies[15:]] == [True] * 3


async def test_load_is_given_back_once(violet, turns, name, uid):
    await violet.miner(uid, current_load=3)
    await make_task(violet, name, status="assigned", assigned_miners=[uid])
    words = ("completed", "failed", "cancelled", "approved", "completed", "done")
    replies, failed = await settle(
        [
            next(turns).tasks.SetTaskStatus(pb.SetTaskStatusRequest(task_id=name, status=word))
            for word in words
        ]
    )
    assert failed == []
    assert [list(reply.released) for reply in replies].count([uid]) == 1
    assert await violet.loads(uid) == [2]


async def test_a_response_and_the_end_of_its_task_give_the_load_back_once(violet, turns, name, uid):
    await violet.miner(uid, current_load=3)
    await make_task(violet, name, status="assigned", assigned_miners=[uid])
    respond = pb.AddMinerResponseRequest(task_id=name, miner_uid=uid)
    end = pb.SetTaskStatusRequest(task_id=name, status="failed")
    _, failed = await settle(
        [
            next(turns).tasks.AddMinerResponse(respond),
            next(turns).tasks.SetTaskStatus(end),
            next(turns).tasks.AddMinerResponse(respond),
            next(turns).tasks.SetTaskStatus(end),
        ]
    )
    assert failed == []
    assert await violet.loads(uid) == [2]


async def test_no_load_is_left_of_a_task_that_is_deleted_while_it_is_assigned(
    violet, turns, name, uid
):
    for index in range(3):
        await violet.miner(uid + index)
        each = f"{name}-{index}"
        await make_task(violet, each)
        _, failed = await settle(
            [
                next(turns).tasks.AssignTask(
                    pb.AssignTaskRequest(task_id=each, miner_uids=[uid + index])
                ),
                next(turns).tasks.DeleteTask(pb.TaskRequest(task_id=each)),
            ]
        )
        assert set(failed) <= {"NOT_FOUND"}
        assert await violet.fields(f"tasks/{each}") is None
    assert await violet.loads(uid, uid + 1, uid + 2) == [0, 0, 0]


async def test_no_adjustment_of_a_load_is_lost(violet, turns, uid):
    await violet.miner(uid, max_capacity=100)
    _, failed = await settle(
        [
            next(turns).miners.AdjustMinerLoad(pb.AdjustMinerLoadRequest(uid=uid, delta=delta))
            for delta in (1, 2, 3, 4, 5, 6)
        ]
    )
    assert failed == []
    assert await violet.loads(uid) == [21]


async def test_a_load_stays_between_nothing_and_the_capacity(violet, turns, uid):
    await violet.miner(uid, max_capacity=2)
    _, failed = await settle(
        [
            next(turns).miners.AdjustMinerLoad(pb.AdjustMinerLoadRequest(uid=uid, delta=1))
            for _ in range(MANY)
        ]
    )
    assert failed == []
    assert await violet.loads(uid) == [2]
    await settle(
        [
            next(turns).miners.AdjustMinerLoad(pb.AdjustMinerLoadRequest(uid=uid, delta=-1))
            for _ in range(MANY)
        ]
    )
    assert await violet.loads(uid) == [0]


# --- responses ---------------------------------------------------------------------------------


async def test_a_miner_responds_once(violet, turns, name, uid):
    await make_task(violet, name, assigned_miners=[uid, uid + 1])
    replies, failed = await settle(
        [
            next(turns).tasks.AddMinerResponse(
                pb.AddMinerResponseRequest(
                    task_id=name, miner_uid=uid, response=values(output=index)
                )
            )
            for index in range(MANY)
        ]
    )
    assert failed == []
    assert sorted(reply.outcome for reply in replies).count("accepted") == 1
    assert len({reply.response_id for reply in replies}) == 1
    task = await violet.fields(f"tasks/{name}")
    assert (len(task["miner_responses"]), task["response_count"]) == (1, 1)


async def test_no_response_is_lost_and_the_last_one_completes_the_task(violet, turns, name, uid):
    miners = [uid + index for index in range(MANY)]
    await make_task(violet, name, status="assigned", assigned_miners=miners)
    replies, failed = await settle(
        [
            next(turns).tasks.AddMinerResponse(
                pb.AddMinerResponseRequest(task_id=name, miner_uid=each)
            )
            for each in miners
        ]
    )
    assert failed == []
    assert sorted(reply.response_count for reply in replies) == list(range(1, MANY + 1))
    assert [reply.completed for reply in replies].count(True) == 1
    task = await violet.fields(f"tasks/{name}")
    assert sorted(each["miner_uid"] for each in task["miner_responses"]) == miners
    assert (task["status"], task["response_count"]) == ("completed", MANY)


async def test_responses_that_come_while_failed_ones_are_dropped_stay(violet, turns, name, uid):
    miners = [uid + index for index in range(MANY)]
    failed_one = {"miner_uid": uid - 1, "status": "failed"}
    await make_task(violet, name, assigned_miners=[uid - 1, *miners], miner_responses=[failed_one])
    _, failed = await settle(
        [
            *(
                next(turns).tasks.AddMinerResponse(
                    pb.AddMinerResponseRequest(
                        task_id=name, miner_uid=each, response=values(status="completed")
                    )
                )
                for each in miners
            ),
            next(turns).tasks.DropFailedResponses(pb.TaskRequest(task_id=name)),
        ]
    )
    assert failed == []
    task = await violet.fields(f"tasks/{name}")
    assert sorted(each["miner_uid"] for each in task["miner_responses"]) == miners


async def test_a_task_that_is_answered_meanwhile_is_not_stale(violet, turns, name, uid):
    word, old = f"word {name}", datetime.now(UTC) - timedelta(hours=1)
    names = [f"{name}-{index}" for index in range(4)]
    for each in names:
        await make_task(violet, each, status=word, created_at=old, assigned_miners=[uid])
    replies, failed = await settle(
        [
            *(
                next(turns).tasks.AddMinerResponse(
                    pb.AddMinerResponseRequest(task_id=each, miner_uid=uid)
                )
                for each in names
            ),
            next(turns).tasks.SettleStaleTasks(pb.SettleStaleTasksRequest(statuses=[word])),
        ]
    )
    assert failed == []
    for each in names:
        task = await violet.fields(f"tasks/{each}")
        # Answered, whichever was first: an answer after the end is kept, and changes nothing.
        assert len(task["miner_responses"]) == 1
        assert task["status"] == ("failed" if each in replies[-1].ids else "completed")


async def test_updates_of_different_fields_are_all_there(violet, turns, name):
    await make_task(violet, name)
    _, failed = await settle(
        [
            next(turns).tasks.UpdateTask(
                pb.UpdateTaskRequest(task_id=name, fields=values(**{f"f{index}": index}))
            )
            for index in range(MANY)
        ]
    )
    assert failed == []
    task = await violet.fields(f"tasks/{name}")
    assert [task[f"f{index}"] for index in range(MANY)] == list(range(MANY))


async def test_what_is_archived_has_what_was_written_before(violet, turns, name):
    for index in range(4):
        each = f"{name}-{index}"
        await make_task(violet, each, status="completed")
        replies, failed = await settle(
            [
                next(turns).tasks.UpdateTask(
                    pb.UpdateTaskRequest(task_id=each, fields=values(note=1))
                ),
                next(turns).tasks.ArchiveTask(pb.TaskRequest(task_id=each)),
            ]
        )
        assert set(failed) <= {"NOT_FOUND"}
        assert await violet.fields(f"tasks/{each}") is None
        archived = await violet.fields(f"archived_tasks/{each}")
        assert ("note" in archived) is (len(replies) == 2)


# --- validators --------------------------------------------------------------------------------


async def test_one_of_many_is_the_first_to_have_seen_a_task(violet, turns, name):
    await make_task(violet, name)
    validators = ["a", "b"] * 3
    replies, failed = await settle(
        [
            next(turns).tasks.MarkTaskSeen(pb.MarkTaskSeenRequest(task_id=name, validator=each))
            for each in validators
        ]
    )
    assert failed == []
    first = sorted(v for v, reply in zip(validators, replies, strict=True) if reply.first)
    assert first == ["a", "b"]
    task = await violet.fields(f"tasks/{name}")
    assert sorted(task["validators_seen"]) == ["a", "b"]
    assert sorted(task["validators_seen_timestamps"]) == ["a", "b"]


async def test_a_validator_evaluates_a_task_once(violet, turns, name, uid):
    await make_task(violet, name, status="completed")
    replies, failed = await settle(
        [
            next(turns).tasks.SubmitEvaluation(
                pb.SubmitEvaluationRequest(
                    task_id=name, validator_uid=uid, fields=values(overall_score=index)
                )
            )
            for index in range(4)
        ]
    )
    assert failed == []
    assert [reply.outcome for reply in replies].count("accepted") == 1
    assert len({str(shown(reply)["overall_score"]) for reply in replies}) == 1


async def test_reports_of_one_second_are_all_there_and_all_in_the_consensus(violet, turns, uid):
    validators = list(range(1, MANY + 1))
    replies, failed = await settle(
        [
            next(turns).miners.RecordReports(
                pb.RecordReportsRequest(
                    validator_uid=validator,
                    reports=[
                        pb.Report(miner_uid=uid + index, status=values(is_serving=True, stake=1.0))
                        for index in range(2)
                    ],
                )
            )
            for validator in validators
        ]
    )
    assert failed == []
    assert [reply.processed for reply in replies] == [2] * MANY
    for miner in (uid, uid + 1):
        consensus = shown(await violet.miners.GetConsensus(pb.MinerKey(uid=miner)))
        assert consensus["consensus_status"]["consensus_validators"] == validators
        status = await violet.fields(f"miner_status/{miner}")
        assert status["validator_reports_count"] == MANY
        assert sorted(status["reported_by_validators"]) == validators
    query = Query("validator_reports").where("miner_uid", "==", uid)
    reports = [report async for report in violet.stack.client.query(query)]
    assert len(reports) == MANY


async def test_no_report_of_a_miners_status_is_lost(violet, turns, uid):
    _, failed = await settle(
        [
            next(turns).miners.UpsertMinerStatus(
                pb.UpsertMinerStatusRequest(
                    uid=uid, validator_uid=index, fields=values(**{f"f{index}": index})
                )
            )
            for index in range(1, MANY + 1)
        ]
    )
    assert failed == []
    status = await violet.fields(f"miner_status/{uid}")
    assert [status[f"f{index}"] for index in range(1, MANY + 1)] == list(range(1, MANY + 1))
    assert sorted(status["reported_by_validators"]) == list(range(1, MANY + 1))


async def test_who_writes_of_a_validator_keeps_what_others_write(violet, turns, uid):
    _, failed = await settle(
        [
            next(turns).miners.PutValidator(
                pb.PutValidatorRequest(uid=uid, fields=values(**{f"f{index}": index}))
            )
            for index in range(MANY)
        ]
    )
    assert failed == []
    validator = shown(await violet.miners.GetValidator(pb.ValidatorKey(uid=uid)))
    assert [validator[f"f{index}"] for index in range(MANY)] == list(range(MANY))


async def test_no_count_of_a_metric_is_lost(violet, turns, name, uid):
    request = pb.AddMinerMetricsRequest(
        uid=uid, hotkey=name, increments=values(invocations=2), unions=values(kinds=["tts"])
    )
    _, failed = await settle([next(turns).miners.AddMinerMetrics(request) for _ in range(MANY)])
    assert failed == []
    found = await violet.miners.GetMinerMetrics(pb.MinerMetricsKey(uid=uid, hotkey=name))
    assert (shown(found)["invocations"], shown(found)["kinds"]) == (2 * MANY, ["tts"])


async def test_a_miner_that_is_seen_meanwhile_is_not_deleted(violet, turns, uid):
    old = datetime.now(UTC) - timedelta(hours=1)
    await violet.miner(uid, last_seen=old)
    _, failed = await settle(
        [
            next(turns).miners.DeleteStaleMiners(pb.DeleteStaleRequest(limit=500)),
            next(turns).miners.UpsertMinerStatus(
                pb.UpsertMinerStatusRequest(uid=uid, validator_uid=1, fields=values(stake=1.0))
            ),
        ]
    )
    assert failed == []
    assert (await violet.fields(f"miner_status/{uid}"))["stake"] == 1.0


# --- users -------------------------------------------------------------------------------------


async def test_an_email_has_one_user(violet, turns, name):
    replies, failed = await settle(
        [
            next(turns).users.CreateUser(pb.CreateUserRequest(email=f"{name}@x", role="client"))
            for _ in range(MANY)
        ]
    )
    assert failed == ["ALREADY_EXISTS"] * (MANY - 1)
    index = await violet.fields(f"user_emails/{name}@x")
    assert index["user_id"] == replies[0].user_id
    users = await violet.users.ListUsers(pb.ListUsersRequest(page_size=1_000))
    emails = [decode_fields(user.fields).get("email") for user in users.documents]
    assert emails.count(f"{name}@x") == 1


async def test_a_key_has_one_user(violet, turns, name):
    replies, failed = await settle(
        [
            next(turns).users.CreateUser(
                pb.CreateUserRequest(email=f"{name}-{index}@x", role="client", api_key=name)
            )
            for index in range(MANY)
        ]
    )
    assert failed == ["ALREADY_EXISTS"] * (MANY - 1)
    found = await violet.users.GetUserByApiKey(pb.GetUserByApiKeyRequest(api_key=name))
    assert shown(found)["user_id"] == replies[0].user_id


async def test_a_repeated_creation_is_one_user(violet, turns, name):
    request = pb.CreateUserRequest(request_id=f"c{name}", email=f"{name}@x", role="client")
    replies, failed = await settle([next(turns).users.CreateUser(request) for _ in range(4)])
    assert failed == []
    assert len({reply.user_id for reply in replies}) == 1
    stored = await violet.fields(f"users/{replies[0].user_id}")
    assert {reply.api_key for reply in replies} == {stored["api_key"]}
    again = await violet.users.CreateUser(request)
    assert (again.replayed, again.api_key) == (True, stored["api_key"])


async def test_after_rotations_at_once_one_key_is_valid(violet, turns, name):
    made = await violet.users.CreateUser(pb.CreateUserRequest(email=f"{name}@x", role="client"))
    replies, failed = await settle(
        [
            next(turns).users.RotateApiKey(pb.RotateApiKeyRequest(user_id=made.user_id))
            for _ in range(4)
        ]
    )
    assert failed == []
    stored = await violet.fields(f"users/{made.user_id}")
    for key in [made.api_key, *(reply.api_key for reply in replies)]:
        call = violet.users.GetUserByApiKey(pb.GetUserByApiKeyRequest(api_key=key))
        index = await violet.fields(f"api_keys/{key}")
        if key == stored["api_key"]:
            assert shown(await call) == stored
            assert index["user_id"] == made.user_id
        else:
            assert await refused(call) == "NOT_FOUND"
            assert index is None


async def test_a_repeated_rotation_is_one_and_all_hear_of_its_key(violet, turns, name):
    made = await violet.users.CreateUser(pb.CreateUserRequest(email=f"{name}@x", role="client"))
    for round_ in range(3):
        request = pb.RotateApiKeyRequest(request_id=f"{name}{round_}", user_id=made.user_id)
        replies, failed = await settle([next(turns).users.RotateApiKey(request) for _ in range(4)])
        assert failed == []
        stored = await violet.fields(f"users/{made.user_id}")
        assert {reply.api_key for reply in replies} == {stored["api_key"]}


async def test_a_rotation_and_an_upgrade_leave_the_index_with_the_role(violet, turns, name):
    made = await violet.users.CreateUser(pb.CreateUserRequest(email=f"{name}@x", role="client"))
    _, failed = await settle(
        [
            next(turns).users.RotateApiKey(pb.RotateApiKeyRequest(user_id=made.user_id)),
            next(turns).users.UpgradeRole(
                pb.UpgradeRoleRequest(user_id=made.user_id, role="miner", fields=values(uid=1))
            ),
        ]
    )
    assert failed == []
    stored = await violet.fields(f"users/{made.user_id}")
    assert stored["role"] == "miner"
    assert (await violet.fields(f"api_keys/{stored['api_key']}"))["role"] == "miner"


# --- and after all of them ---------------------------------------------------------------------


async def test_both_stores_hold_the_same_in_the_end(violet, stacks):
    """Last in this file: what all of the tests before left."""
    world, _ = stacks
    await world.settled(30)
    stores = world.sidecar.stores
    paths = [
        f"{collection}/{row['id']}"
        for collection in ("tasks", "miner_status", "users", "miner_consensus", "evaluations")
        for row in await world.sql.fetch(f"select id from violet.{collection}")
    ]
    assert len(paths) > 20
    for path in paths:
        held = []
        for store in (StoreName.FIRESTORE, StoreName.POSTGRESQL):
            reading = await stores[store].get([path], timeout=5)
            data = reading.documents[0].data
            held.append(None if data is None else wire.parse_document(data, DATABASE).fields)
        assert held[0] == held[1], path
