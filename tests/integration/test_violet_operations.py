"""violet.v1 through a whole sidecar, on both authorities: what each operation does."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from crossfade.plan import Stage
from crossfade_api.v1 import document_pb2, violet_pb2
from crossfade_client._codec import decode_fields
from tests.sidecar import running
from tests.violet_caller import Caller, refused, shown, values
from violet.operations.data import Data

pb = violet_pb2
NOW = datetime.now(UTC)


@pytest.fixture(scope="module", params=[Stage.SHADOW, Stage.LIVE], ids=str)
async def stack(request, postgres_database):
    """One sidecar for all tests of an authority: each test has ids of its own."""
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as world:
        await world.copy()
        if request.param is Stage.LIVE:
            await world.settled()
            await world.stage("live")
        yield world


@pytest.fixture
async def violet(stack):
    caller = Caller(stack)
    yield caller
    await caller.channel.close()


@pytest.fixture
def name():
    return uuid4().hex[:12]


# --- tasks -------------------------------------------------------------------------------------


async def test_a_task_is_made_once_under_the_callers_id(violet, name):
    request = pb.CreateTaskRequest(
        request_id=f"r{name}", task_id=name, fields=values(priority="odd word", model_id=None)
    )
    made = await violet.tasks.CreateTask(request)
    assert shown(made)["status"] == "pending"
    again = await violet.tasks.CreateTask(request)
    assert (made.replayed, again.replayed) == (False, True)
    assert shown(again) == shown(made)
    other = pb.CreateTaskRequest(request_id=f"s{name}", task_id=name)
    assert await refused(violet.tasks.CreateTask(other)) == "ALREADY_EXISTS"
    found = await violet.tasks.GetTask(pb.GetRequest(id=name))
    assert shown(found) == shown(made)
    assert found.document.HasField("update_time")


async def test_what_is_not_there_is_not_found_and_what_cannot_be_is_invalid(violet, name):
    missing = [
        violet.tasks.GetTask(pb.GetRequest(id=name)),
        violet.tasks.UpdateTask(pb.UpdateTaskRequest(task_id=name, fields=values(a=1))),
        violet.tasks.SetTaskStatus(pb.SetTaskStatusRequest(task_id=name, status="failed")),
        violet.tasks.AssignTask(pb.AssignTaskRequest(task_id=name, miner_uids=[1])),
        violet.tasks.AutoAssignTask(pb.AutoAssignTaskRequest(task_id=name)),
        violet.tasks.AddMinerResponse(pb.AddMinerResponseRequest(task_id=name, miner_uid=1)),
        violet.tasks.ArchiveTask(pb.TaskRequest(task_id=name)),
        violet.tasks.MarkTaskSeen(pb.MarkTaskSeenRequest(task_id=name, validator="v")),
        violet.tasks.SubmitEvaluation(pb.SubmitEvaluationRequest(task_id=name)),
        violet.miners.GetConsensus(pb.MinerKey(uid=999)),
        violet.users.GetUserByEmail(pb.GetUserByEmailRequest(email=name)),
        violet.users.RecordLogin(pb.UserRequest(user_id=name)),
        violet.users.RotateApiKey(pb.RotateApiKeyRequest(user_id=name)),
        violet.content.GetFile(pb.GetRequest(id=name)),
    ]
    assert {await refused(call) for call in missing} == {"NOT_FOUND"}
    invalid = [
        violet.tasks.GetTask(pb.GetRequest(id="a/b/c")),
        violet.tasks.GetTask(pb.GetRequest()),
        violet.tasks.ListTasks(pb.ListTasksRequest(page_token="x")),
        violet.tasks.ListTasks(pb.ListTasksRequest(page_size=-1)),
        violet.tasks.ListTasks(pb.ListTasksRequest(seen_by=name, miner_uid=1)),
        violet.tasks.ListTasks(pb.ListTasksRequest(statuses=map(str, range(31)))),
        violet.tasks.AssignTask(pb.AssignTaskRequest(task_id=name, miner_uids=range(257))),
        violet.users.GetUserByApiKey(pb.GetUserByApiKeyRequest(api_key="a/b")),
        violet.tasks.UpdateTask(pb.UpdateTaskRequest(task_id=name)),
        violet.tasks.SetTaskStatus(pb.SetTaskStatusRequest(task_id=name)),
        violet.tasks.CreateTask(pb.CreateTaskRequest(request_id="r" * 97)),
        violet.tasks.AssignTask(pb.AssignTaskRequest(task_id=name, miner_uids=[-1])),
        violet.users.CreateUser(pb.CreateUserRequest(email=" ", role="client")),
        violet.users.GetUserByCredentials(pb.GetUserByCredentialsRequest()),
        violet.miners.RecordReports(
            pb.RecordReportsRequest(reports=[pb.Report(miner_uid=1), pb.Report(miner_uid=1)])
        ),
    ]
    assert {await refused(call) for call in invalid} == {"INVALID_ARGUMENT"}
    assert await violet.fields(f"tasks/{name}") is None


async def test_an_update_takes_paths_transforms_and_unknown_words(violet, name):
    await violet.set(f"tasks/{name}", task_id=name, status="pending", file={"a": 1, "b": 2}, n=1)
    increment = document_pb2.DocumentTransform.FieldTransform(field_path="n")
    increment.increment.integer_value = 4
    changed = await violet.tasks.UpdateTask(
        pb.UpdateTaskRequest(
            request_id=f"u{name}",
            task_id=name,
            fields=values(status="odd", file={"a": 5}),
            update_mask=document_pb2.DocumentMask(field_paths=["status", "file.a", "file.b"]),
            update_transforms=[increment],
        )
    )
    after = await violet.fields(f"tasks/{name}")
    assert shown(changed) == after
    assert (after["status"], after["file"], after["n"]) == ("odd", {"a": 5}, 5)
    found = await violet.tasks.GetTask(pb.GetRequest(id=name))
    late = pb.UpdateTaskRequest(task_id=name, fields=values(n=0))
    late.update_time.CopyFrom(found.document.create_time)
    assert await refused(violet.tasks.UpdateTask(late)) == "FAILED_PRECONDITION"
    late.update_time.CopyFrom(found.document.update_time)
    assert shown(await violet.tasks.UpdateTask(late))["n"] == 0
    unmet = pb.SetTaskStatusRequest(task_id=name, status="failed", from_statuses=["pending"])
    assert await refused(violet.tasks.SetTaskStatus(unmet)) == "FAILED_PRECONDITION"


async def test_lists_go_on_where_they_were_though_documents_come_and_go(violet, name):
    word = f"word {name}"
    for index in range(7):
        await violet.set(f"tasks/{name}-{index}", status=word, assigned_miners=[index % 2])
    request = pb.ListTasksRequest(statuses=[word], page_size=3)
    first = await violet.tasks.ListTasks(request)
    await violet.stack.client.delete(f"tasks/{name}-2")  # the page's last
    await violet.set(f"tasks/{name}-0b", status=word)
    request.page_token = first.next_page_token
    second = await violet.tasks.ListTasks(request)
    request.page_token = second.next_page_token
    third = await violet.tasks.ListTasks(request)
    ids = [[d.name[-1] for d in page.documents] for page in (first, second, third)]
    assert ids == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert third.next_page_token == ""
    by_miner = pb.ListTasksRequest(statuses=[word, "other"], miner_uid=1)
    found = await violet.tasks.ListTasks(by_miner)
    assert [d.name[-1] for d in found.documents] == ["1", "3", "5"]
    counted = await violet.tasks.CountTasks(pb.CountTasksRequest(statuses=[word], miner_uid=1))
    assert counted.count == 3
    empty = await violet.tasks.ListTasks(pb.ListTasksRequest(statuses=[f"{word}s"]))
    assert not empty.documents


async def test_statistics_count_all(violet, name):
    before = await violet.tasks.GetTaskStatistics(pb.GetTaskStatisticsRequest())
    for index in range(3):
        await violet.set(f"tasks/{name}-{index}", status="distributed")
    await violet.set(f"tasks/{name}-odd", status="odd")
    after = await violet.tasks.GetTaskStatistics(pb.GetTaskStatisticsRequest())
    assert after.by_status["distributed"] - before.by_status["distributed"] == 3
    assert (after.total - before.total, after.other - before.other) == (4, 1)


async def test_auto_assign_takes_the_best_that_are_available(violet, name):
    base = int(name[:6], 16) * 100
    kind = f"kind {name}"
    offered: list[tuple[float, dict[str, Any]]] = [
        *((0.1, {}), (0.9, {}), (0.5, {})),
        *((1.0, {"current_load": 5}), (1.0, {"is_serving": False})),
    ]
    for index, (score, fields) in enumerate(offered):
        await violet.miner(
            base + index, performance_score=score, task_type_specialization={kind: {}}, **fields
        )
    await violet.set(
        f"tasks/{name}", status="pending", task_type=kind, required_miner_count=2, task_id=name
    )
    picked = await violet.miners.PickAvailableMiners(
        pb.PickAvailableMinersRequest(task_type=kind, limit=5)
    )
    mine = [miner.uid - base for miner in picked.miners if miner.uid >= base]
    assert mine == [1, 2, 0]
    request = pb.AutoAssignTaskRequest(request_id=f"a{name}", task_id=name)
    reply = await violet.tasks.AutoAssignTask(request)
    assert [uid - base for uid in reply.assigned] == [1, 2]
    assert reply.enough
    again = await violet.tasks.AutoAssignTask(request)
    assert again.replayed
    assert list(again.assigned) == list(reply.assigned)
    assert await violet.loads(base + 1, base + 2, base) == [1, 1, 0]


async def test_completion_and_failed_responses(violet, name):
    good = {"miner_uid": 1, "status": "completed", "accuracy_score": 0.5}
    await violet.set(
        f"tasks/{name}",
        status="processing",
        assigned_miners=[1, 2, 3],
        miner_responses=[good, {"miner_uid": 2, "status": "failed"}],
    )
    completion = await violet.tasks.GetTaskCompletion(pb.GetRequest(id=name))
    assert (list(completion.responded), list(completion.missing)) == ([1, 2], [3])
    assert dict(completion.responses_by_status) == {"completed": 1, "failed": 1}
    assert decode_fields(completion.best_response.map_value.fields) == good
    request = pb.TaskRequest(request_id=f"d{name}", task_id=name)
    assert shown(await violet.tasks.DropFailedResponses(request))["miner_responses"] == [good]
    assert (await violet.tasks.DropFailedResponses(request)).replayed


async def test_a_deletion_takes_what_belongs_to_the_task_along(violet, name):
    uid = int(name[:6], 16)
    await violet.miner(uid, current_load=1)
    await violet.set(f"tasks/{name}", status="assigned", assigned_miners=[uid])
    await violet.set(f"miner_responses/{name}_{uid}", task_id=name, miner_uid=uid)
    await violet.set(f"tasks/{name}/audio_chunks/0", index=0)
    request = pb.TaskRequest(request_id=f"d{name}", task_id=name)
    assert (await violet.tasks.DeleteTask(request)).existed
    for path in ("tasks/{0}", "miner_responses/{0}_{1}", "tasks/{0}/audio_chunks/0"):
        assert await violet.fields(path.format(name, uid)) is None
    assert await violet.loads(uid) == [0]
    again = await violet.tasks.DeleteTask(request)
    assert (again.existed, again.replayed) == (True, True)
    assert not (await violet.tasks.DeleteTask(pb.TaskRequest(task_id=name))).existed


async def test_an_archived_task_is_in_one_place(violet, name):
    await violet.set(f"tasks/{name}", task_id=name, status="completed", odd=[1.5, None])
    before = await violet.fields(f"tasks/{name}")
    request = pb.TaskRequest(request_id=f"a{name}", task_id=name)
    assert shown(await violet.tasks.ArchiveTask(request)) == before
    assert await violet.fields(f"tasks/{name}") is None
    assert await violet.fields(f"archived_tasks/{name}") == before
    assert (await violet.tasks.ArchiveTask(request)).replayed


async def test_sweeps(violet, name):
    old, word = datetime.now(UTC) - timedelta(hours=1), f"word {name}"
    uid = int(name[:6], 16)
    await violet.miner(uid, current_load=1)
    given: list[dict[str, Any]] = [
        {"distributed_at": old, "assigned_miners": [uid]},
        {"distributed_at": datetime.now(UTC)},
        {"distributed_at": old.isoformat(), "miner_responses": [{"miner_uid": 1}]},
    ]
    for index, fields in enumerate(given):
        await violet.set(f"tasks/{name}-{index}", status=word, **fields)
    request = pb.SettleStaleTasksRequest(
        request_id=f"s{name}", statuses=[word], with_response="completed"
    )
    assert list((await violet.tasks.SettleStaleTasks(request)).ids) == [f"{name}-0", f"{name}-2"]
    statuses = [(await violet.fields(f"tasks/{name}-{i}"))["status"] for i in range(3)]
    assert statuses == ["failed", word, "completed"]
    assert await violet.loads(uid) == [0]
    requeued = await violet.tasks.RequeueFailedTasks(pb.SweepRequest(limit=500))
    assert f"{name}-0" in requeued.ids
    again = await violet.fields(f"tasks/{name}-0")
    assert (again["status"], again["assigned_miners"]) == ("pending", [])


async def test_audio_chunks_of_old_tasks_go(violet, name):
    word, old = f"word {name}", datetime.now(UTC) - timedelta(days=2)
    await violet.set(f"tasks/{name}", status=word, created_at=old, input_file={"chunked": True})
    for index in range(3):
        await violet.set(f"tasks/{name}/audio_chunks/{index}", index=index)
    request = pb.DeleteAudioChunksRequest(statuses=[word])
    assert list((await violet.tasks.DeleteAudioChunks(request)).ids) == [name]
    assert await violet.fields(f"tasks/{name}/audio_chunks/2") is None
    assert (await violet.fields(f"tasks/{name}"))["input_file"]["chunks_cleaned"] is True
    assert not (await violet.tasks.DeleteAudioChunks(request)).ids


async def test_audio_chunks_stay_with_a_task_that_is_wanted_again(violet, name, monkeypatch):
    word, old = f"word {name}", datetime.now(UTC) - timedelta(days=2)
    await violet.set(f"tasks/{name}", status=word, created_at=old, input_file={"chunked": True})
    await violet.set(f"tasks/{name}/audio_chunks/0", index=0)
    find = Data.documents

    async def overtaken(self: Data, *args: Any) -> Any:
        found = await find(self, *args)
        await violet.set(f"tasks/{name}", status="pending", created_at=old, input_file={})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Data, "documents", overtaken)
        request = pb.DeleteAudioChunksRequest(statuses=[word])
        assert not (await violet.tasks.DeleteAudioChunks(request)).ids
    assert await violet.fields(f"tasks/{name}/audio_chunks/0") == {"index": 0}
    assert (await violet.fields(f"tasks/{name}"))["input_file"] == {}


async def test_validators_get_what_they_have_not_seen(violet, name):
    word = f"word {name}"
    await violet.set(f"tasks/{name}-1", status=word, evaluated_by=4)
    await violet.set(f"tasks/{name}-2", status=word)
    await violet.set(f"tasks/{name}-3", status=word)
    seen = pb.MarkTaskSeenRequest(task_id=f"{name}-2", validator=name)
    assert (await violet.tasks.MarkTaskSeen(seen)).first
    assert not (await violet.tasks.MarkTaskSeen(seen)).first
    listed = await violet.tasks.ListTasks(pb.ListTasksRequest(seen_by=name))
    assert [d.name[-1] for d in listed.documents] == ["2"]
    request = pb.ListTasksForEvaluationRequest(statuses=[word], validator=name, validator_uid=4)
    found = await violet.tasks.ListTasksForEvaluation(request)
    assert [d.name[-1] for d in found.documents] == ["3"]
    evaluation = pb.SubmitEvaluationRequest(
        task_id=f"{name}-3", validator_uid=4, fields=values(overall_score=0.5)
    )
    assert (await violet.tasks.SubmitEvaluation(evaluation)).outcome == "accepted"
    assert (await violet.tasks.SubmitEvaluation(evaluation)).outcome == "duplicate"
    assert (await violet.fields(f"tasks/{name}-3"))["status"] == "approved"
    made = await violet.tasks.ListEvaluations(pb.ListByTaskRequest(task_id=f"{name}-3"))
    assert [decode_fields(d.fields)["overall_score"] for d in made.documents] == [0.5]


# --- miners ------------------------------------------------------------------------------------


async def test_miners_register_report_and_go(violet, name):
    uid = int(name[:6], 16)
    fields = values(hotkey="h", max_capacity=5)
    await violet.miners.RegisterMiner(pb.MinerRequest(uid=uid, fields=fields))
    assert shown(await violet.miners.GetMiner(pb.MinerKey(uid=uid)))["hotkey"] == "h"
    zero = await violet.miners.RegisterMiner(pb.MinerRequest(uid=0, fields=fields))
    assert shown(zero)["uid"] == 0
    await violet.miners.UpsertMinerStatus(
        pb.UpsertMinerStatusRequest(uid=uid, validator_uid=1, fields=values(is_serving=True))
    )
    await violet.set("miner_status/_init", initialized=True)
    listed = await violet.miners.ListMinerStatus(pb.ListMinerStatusRequest(page_size=1_000))
    ids = [d.name.rpartition("/")[2] for d in listed.documents]
    assert str(uid) in ids
    assert "_init" not in ids
    await violet.miner(uid, last_seen=datetime.now(UTC) - timedelta(hours=1))
    await violet.miner(uid + 1, last_seen=datetime.now(UTC).replace(tzinfo=None).isoformat())
    gone = await violet.miners.DeleteStaleMiners(pb.DeleteStaleRequest(limit=500))
    assert str(uid) in gone.ids
    assert str(uid + 1) not in gone.ids
    assert "_init" not in gone.ids
    assert await violet.fields(f"miner_status/{uid}") is None


async def test_validators(violet, name):
    uid = int(name[:6], 16)
    request = pb.PutValidatorRequest(uid=uid, fields=values(status="active", hotkey="h"))
    await violet.miners.PutValidator(request)
    await violet.miners.PutValidator(pb.PutValidatorRequest(uid=uid, fields=values(last_epoch=3)))
    found = shown(await violet.miners.GetValidator(pb.ValidatorKey(uid=uid)))
    assert (found["hotkey"], found["last_epoch"]) == ("h", 3)
    active = await violet.miners.ListValidators(pb.ListValidatorsRequest(status="active"))
    assert str(uid) in [d.name.rpartition("/")[2] for d in active.documents]
    assert not (await violet.miners.DeleteStaleValidators(pb.DeleteStaleRequest())).ids


# --- users and content -------------------------------------------------------------------------


async def test_a_user_is_found_by_email_key_and_credentials(violet, name):
    made = await violet.users.CreateUser(
        pb.CreateUserRequest(
            request_id=f"c{name}",
            email=f" {name}@X ",
            role="miner",
            fields=values(hotkey=name, uid=48.0, network="finney"),
        )
    )
    assert len(made.api_key) == 43
    by_email = await violet.users.GetUserByEmail(pb.GetUserByEmailRequest(email=f"{name}@x"))
    key = pb.GetUserByApiKeyRequest(api_key=made.api_key)
    by_key = await violet.users.GetUserByApiKey(key)
    by_credentials = await violet.users.GetUserByCredentials(
        pb.GetUserByCredentialsRequest(hotkey=name, uid=48, network="finney")
    )
    assert shown(by_email) == shown(by_key) == shown(by_credentials) == shown(made)
    exists = await violet.users.UserExists(pb.GetUserByEmailRequest(email=f"{name}@x"))
    assert exists.exists
    assert (await violet.fields(f"user_emails/{name}@x"))["user_id"] == made.user_id
    await violet.users.RecordLogin(pb.UserRequest(user_id=made.user_id))
    await violet.users.UpgradeRole(pb.UpgradeRoleRequest(user_id=made.user_id, role="validator"))
    assert (await violet.fields(f"api_keys/{made.api_key}"))["role"] == "validator"
    listed = await violet.users.ListUsers(pb.ListUsersRequest(role="validator", active=True))
    assert made.user_id in [d.name.rpartition("/")[2] for d in listed.documents]
    await violet.users.SetUserActive(pb.SetUserActiveRequest(user_id=made.user_id))
    assert await refused(violet.users.GetUserByApiKey(key)) == "NOT_FOUND"
    key.inactive_too = True
    assert shown(await violet.users.GetUserByApiKey(key))["is_active"] is False


async def test_a_user_without_an_index_keeps_its_email(violet, name):
    await violet.set(f"users/{name}", user_id=name, email=f"{name}@x", api_key=name)
    found = await violet.users.GetUserByEmail(pb.GetUserByEmailRequest(email=f"{name}@x"))
    assert shown(found)["user_id"] == name
    request = pb.CreateUserRequest(email=f"{name}@x", role="client")
    assert await refused(violet.users.CreateUser(request)) == "ALREADY_EXISTS"


async def test_a_dangling_index_takes_no_email_away(violet, name):
    await violet.set(f"user_emails/{name}@x", user_id="nobody")
    made = await violet.users.CreateUser(pb.CreateUserRequest(email=f"{name}@x", role="client"))
    assert (await violet.fields(f"user_emails/{name}@x"))["user_id"] == made.user_id


async def test_content(violet, name):
    put = pb.PutRequest(request_id=f"p{name}", id=name, fields=values(size=1, file_type=name))
    await violet.content.PutFile(put)
    merge = pb.PutRequest(id=name, merge=True, fields=values(public_url="u"))
    await violet.content.PutFile(merge)
    found = shown(await violet.content.GetFile(pb.GetRequest(id=name)))
    assert (found["file_id"], found["size"], found["public_url"]) == (name, 1, "u")
    listed = await violet.content.ListFiles(pb.ListFilesRequest(file_type=name))
    assert len(listed.documents) == 1
    assert (await violet.content.GetFileStatistics(pb.GetFileStatisticsRequest())).files
    await violet.set(f"files/{name}-old", uploaded_at=datetime.now(UTC) - timedelta(days=99))
    expired = await violet.content.ExpireFiles(pb.ExpireFilesRequest(limit=500))
    assert list(expired.ids) == [f"{name}-old"]
    assert (await violet.content.DeleteFile(pb.DeleteRequest(id=name))).existed
    await violet.content.PutVoice(pb.PutRequest(id=f"b{name}", fields=values(language=name)))
    await violet.content.PutVoice(pb.PutRequest(id=f"a{name}", fields=values(language=name)))
    first = await violet.content.GetDefaultVoice(pb.GetDefaultVoiceRequest(language=name))
    assert shown(first)["voice_name"] == f"a{name}"
    await violet.content.PutText(pb.PutRequest(id=name, fields=values(text="t")))
    assert shown(await violet.content.GetText(pb.GetRequest(id=name)))["text"] == "t"
    metric = pb.RecordSystemMetricRequest(
        request_id=f"m{name}", metric_name=name, metric_value=0.5, metric_data=values(a=1)
    )
    await violet.content.RecordSystemMetric(metric)
    await violet.content.RecordSystemMetric(metric)
    kept = await violet.content.ListSystemMetrics(pb.ListSystemMetricsRequest(metric_name=name))
    assert [decode_fields(d.fields)["metric_data"] for d in kept.documents] == [{"a": 1}]


async def test_every_rpc_of_the_protocol_is_served(violet):
    for service in violet_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            call = violet.channel.unary_unary(f"/{service.full_name}/{method.name}")
            assert await refused(call(b"\xff")) == "INVALID_ARGUMENT", method.full_name


async def test_no_error_quotes_a_key_or_an_email(violet, name):
    await violet.set(f"users/{name}", user_id=name, email=f"{name}@x", api_key=f"key{name}")
    calls = [
        violet.users.GetUserByApiKey(pb.GetUserByApiKeyRequest(api_key=f"key{name}")),
        violet.users.GetUserByApiKey(pb.GetUserByApiKeyRequest(api_key=f"__key{name}__")),
        violet.users.GetUserByApiKey(pb.GetUserByApiKeyRequest(api_key=f"key{name}/")),
        violet.users.GetUserByEmail(pb.GetUserByEmailRequest(email=f"{name}@x/y")),
        violet.users.GetUserByEmail(pb.GetUserByEmailRequest(email=f"{name}@y")),
        violet.users.CreateUser(pb.CreateUserRequest(email=f"{name}@x", role="client")),
        violet.users.CreateUser(
            pb.CreateUserRequest(email=f"{name}@z", role="client", api_key=f"key{name}")
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert name not in (caught.value.details() or "")


async def test_an_outage_is_never_an_answer(postgres_database, name):
    async with running(await postgres_database(), Stage.OFF) as stack:
        violet = Caller(stack)
        await violet.set(f"tasks/{name}", status="pending")
        await stack.firestore_server.stop(0)
        calls = [
            violet.tasks.GetTask(pb.GetRequest(id=name), timeout=2),
            violet.tasks.ListTasks(pb.ListTasksRequest(statuses=["pending"]), timeout=2),
            violet.tasks.CountTasks(pb.CountTasksRequest(miner_uid=1), timeout=2),
            violet.tasks.DeleteTask(pb.TaskRequest(task_id=name), timeout=2),
            violet.tasks.AssignTask(pb.AssignTaskRequest(task_id=name, miner_uids=[1]), timeout=2),
            violet.miners.PickAvailableMiners(pb.PickAvailableMinersRequest(), timeout=2),
            violet.users.UserExists(pb.GetUserByEmailRequest(email="a@b"), timeout=2),
        ]
        outcomes = {await refused(call) for call in calls}
        await violet.channel.close()
    assert outcomes <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


async def test_a_request_is_done_once_across_changes_of_the_authority(postgres_database, name):
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        violet = Caller(stack)
        await stack.copy()
        await violet.miner(7)
        await violet.set(f"tasks/{name}", status="pending")
        assign = pb.AssignTaskRequest(request_id=f"a{name}", task_id=name, miner_uids=[7])
        adjust = pb.AdjustMinerLoadRequest(request_id=f"l{name}", uid=7, delta=1)
        user = pb.CreateUserRequest(request_id=f"u{name}", email="a@b", role="client")
        await violet.tasks.AssignTask(assign)
        made = await violet.users.CreateUser(user)
        await stack.settled()
        await stack.stage("live")
        await violet.miners.AdjustMinerLoad(adjust)
        again = await violet.tasks.AssignTask(assign)
        assert (again.replayed, list(again.assigned)) == (True, [7])
        repeated = await violet.users.CreateUser(user)
        assert (repeated.replayed, repeated.api_key) == (True, made.api_key)
        await stack.settled()
        await stack.stage("shadow")
        assert (await violet.miners.AdjustMinerLoad(adjust)).replayed
        assert await violet.loads(7) == [2]
        await violet.channel.close()


async def test_final_results(violet, name):
    put = pb.PutRequest(request_id=f"f{name}", id=name, fields=values(status="approved"))
    await violet.tasks.PutFinalResult(put)
    found = shown(await violet.tasks.GetFinalResult(pb.GetRequest(id=name)))
    assert (found["task_id"], found["status"]) == (name, "approved")


async def test_report_statistics(violet, name):
    uid = int(name[:8], 16)
    before = await violet.miners.GetReportStatistics(pb.GetReportStatisticsRequest())
    report = pb.RecordReportsRequest(
        validator_uid=1,
        reports=[pb.Report(miner_uid=uid, status=values(is_serving=True))],
        request_id=f"r{name}",
    )
    first = await violet.miners.RecordReports(report)
    again = await violet.miners.RecordReports(report)
    assert (first.replayed, again.replayed) == (False, True)
    assert first.consensus[0].fields["consensus_confidence"].double_value == 1.0
    after = await violet.miners.GetReportStatistics(pb.GetReportStatisticsRequest())
    assert after.reports - before.reports == 1
    assert after.recent_reports - before.recent_reports == 1
    assert after.miners_with_consensus - before.miners_with_consensus == 1
    listed = await violet.miners.ListConsensus(pb.ListRequest(page_size=1_000))
    assert f"miner_consensus/{uid}" in "".join(document.name for document in listed.documents)


async def test_operations_are_the_same_in_every_stage(postgres_database):
    async with running(await postgres_database(), Stage.OFF) as stack:
        violet = Caller(stack)
        for stage in ("off", "dual_write", "shadow", "live", "ramp_down", "complete"):
            if stage != "off":
                await stack.stage(stage)
            if stage == "shadow":
                await stack.copy()
                await stack.settled()
            await violet.miner(7, task_type_specialization=stage)
            fields = values(task_type=stage)
            await violet.tasks.CreateTask(
                pb.CreateTaskRequest(request_id=f"c{stage}", task_id=stage, fields=fields)
            )
            assign = pb.AutoAssignTaskRequest(request_id=f"a{stage}", task_id=stage)
            assert list((await violet.tasks.AutoAssignTask(assign)).assigned) == [7]
            assert (await violet.tasks.AutoAssignTask(assign)).replayed
            listed = await violet.tasks.ListTasks(
                pb.ListTasksRequest(statuses=["assigned"], miner_uid=7)
            )
            assert [document.name.rpartition("/")[2] for document in listed.documents] == [stage]
            assert (await violet.tasks.CountTasks(pb.CountTasksRequest(miner_uid=7))).count == 1
            answered = await violet.tasks.AddMinerResponse(
                pb.AddMinerResponseRequest(request_id=f"r{stage}", task_id=stage, miner_uid=7)
            )
            assert answered.completed
            assert await violet.loads(7) == [0]
            found = await violet.tasks.GetTaskStatistics(pb.GetTaskStatisticsRequest())
            assert found.by_status["completed"] == found.total
            user = pb.CreateUserRequest(email=f"{stage}@x", role="client")
            await violet.users.CreateUser(user)
            assert await refused(violet.users.CreateUser(user)) == "ALREADY_EXISTS"
        await violet.channel.close()
