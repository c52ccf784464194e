"""The decisions about miners, validators, users and content, and the tokens of pages."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfade.document import NAME, Document, Fields, Reference, from_micros
from crossfade.errors import AlreadyExists, InvalidArgument
from crossfade.query import Cursor, FieldFilter, Op, Order, Query
from crossfade.write import Write, check
from violet.operations import content, miners, pages, users
from violet.operations.miners import Report

NOW = 1_800_000_000_000_000
MINUTE = 60_000_000


def document(path: str, fields: Fields) -> Document:
    return Document(path, fields, 1, 1)


def paths(writes: tuple[Write, ...]) -> list[str]:
    return [write.path for write in writes]


# --- miners ------------------------------------------------------------------------------------


def test_a_miner_that_registers_again_keeps_its_load_and_its_first_time():
    first = miners.register(0, None, {"hotkey": "h", "max_capacity": 5}, NOW).answer
    assert (first["uid"], first["current_load"]) == (0, 0)
    before = document("miners/0", {**first, "current_load": 3})
    again = miners.register(0, before, {"current_load": 0, "hotkey": "i"}, NOW + MINUTE).answer
    assert (again["current_load"], again["hotkey"]) == (3, "i")
    assert again["registered_at"] == from_micros(NOW)
    assert again["last_seen"] == from_micros(NOW + MINUTE)


def test_reports_merge():
    first = miners.merge_report(
        7, None, 1, 10, {"stake": 5.0, "performance_score": 0.4, "is_serving": True}, NOW
    ).answer
    status = document("miner_status/7", first)
    report: Fields = {"stake": 3, "performance_score": 0.8, "is_serving": False, "ip": "a"}
    second = miners.merge_report(7, status, 2, 11, report, NOW + MINUTE).answer
    assert second["stake"] == 5.0
    assert second["performance_score"] == pytest.approx(0.6)
    assert second["is_serving"] is True
    assert second["reported_by_validators"] == [1, 2]
    assert (second["validator_reports_count"], second["epoch"], second["ip"]) == (2, 11, "a")
    # What was said too long ago does not speak against what is said now.
    late = miners.merge_report(7, document("m/7", second), 2, 12, report, NOW + 60 * MINUTE)
    assert late.answer["is_serving"] is False


def test_a_report_does_not_overwrite_a_load_that_is_counted_here():
    counted = document("miner_status/7", {"current_load": 2, "assigned_task_count": 2})
    reported: Fields = {"current_load": 0, "assigned_task_count": 0}
    after = miners.merge_report(7, counted, 1, 1, reported, NOW).answer
    assert (after["current_load"], after["assigned_task_count"]) == (2, 2)
    free = document("miner_status/7", {"current_load": 2})
    assert miners.merge_report(7, free, 1, 1, {"current_load": 0}, NOW).answer["current_load"] == 0


def test_the_consensus_is_of_the_latest_report_of_each_validator():
    def report(validator: int, **status: Any) -> Report:
        return Report(validator, 7, 1, {"is_serving": True, "stake": 2.0, **status})

    before = None
    for validator, load, minutes in ((1, 9.0, 0), (1, 1.0, 7), (2, 1.05, 8)):
        decision = miners.agree(
            report(validator, current_load=load), before, NOW + minutes * MINUTE
        )
        before = document("miner_consensus/7", decision.answer)
    fields: Any = decision.answer
    assert fields["consensus_status"]["current_load"] == pytest.approx(1.025)
    assert fields["consensus_status"]["consensus_validators"] == [1, 2]
    assert fields["consensus_status"]["conflicts_detected"] == []
    assert fields["consensus_confidence"] == 1.0


def test_a_disputed_miner_has_a_consensus_too():
    one = miners.agree(Report(1, 7, 1, {"is_serving": True, "hotkey": "a"}, 0.9), None, NOW)
    two = miners.agree(
        Report(2, 7, 1, {"is_serving": False, "hotkey": "b"}, 0.3),
        document("miner_consensus/7", one.answer),
        NOW,
    )
    status: Any = two.answer["consensus_status"]
    assert (status["is_serving"], status["hotkey"]) == (True, "a")
    disputed = [{"field": "hotkey"}, {"field": "is_serving"}]
    assert status["conflicts_detected"] == disputed
    assert two.answer["consensus_confidence"] == 0.0
    for write in two.writes:
        check(write)  # an array in an array would be refused


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.floats(0, 9), st.text("ab"))
NAMES = st.sampled_from(
    [
        *("stake", "performance_score", "current_load", "is_serving", "last_seen", "uid"),
        *("reported_by_validators", "validator_reports_count", "assigned_task_count", "hotkey"),
        *("latest_reports", "epoch"),
    ]
)
STATUS = st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=2))


@settings(max_examples=200, deadline=None)
@given(STATUS, STATUS, st.lists(st.tuples(st.integers(0, 3), STATUS), max_size=4))
def test_reports_of_any_shape_are_merged_and_agreed_on(before, report, reports):
    status = document("miner_status/7", before)
    for write in miners.merge_report(7, status, 1, 1, report, NOW).writes:
        check(write)
    consensus = None
    for validator, fields in reports:
        decision = miners.agree(Report(validator, 7, 1, fields), consensus, NOW)
        for write in decision.writes:
            check(write)
        consensus = document("miner_consensus/7", decision.answer)
    if consensus is not None:
        assert consensus.fields["validator_reports_count"] == len({v for v, _ in reports})


def test_a_validator_keeps_what_others_wrote():
    before = document("validators/4", {"total_evaluations": 3, "created_at": from_micros(NOW)})
    after = miners.put_validator(4, before, {"status": "active"}, NOW + MINUTE).answer
    assert (after["total_evaluations"], after["status"]) == (3, "active")
    assert (after["uid"], after["validator_uid"]) == (4, 4)
    assert after["created_at"] == from_micros(NOW)


def test_metrics_are_added_up():
    first = miners.add_metrics(
        1, "h", None, {"invocations": 2}, {"identity": "x"}, {"kinds": ["tts"]}, NOW
    )
    again = miners.add_metrics(
        1,
        "h",
        document("miner_metrics/1_h", first.answer),
        {"invocations": 0.5},
        {},
        {"kinds": ["tts", "asr", "asr"]},
        NOW,
    ).answer
    assert (again["invocations"], again["kinds"]) == (2.5, ["tts", "asr"])
    assert paths(first.writes) == ["miner_metrics/1_h"]


@pytest.mark.parametrize(
    ("fields", "stale"),
    [
        ({"last_seen": from_micros(NOW - MINUTE)}, False),
        ({"last_seen": from_micros(NOW - MINUTE).isoformat()}, False),
        ({"last_seen": from_micros(NOW - 20 * MINUTE)}, True),
        ({"updated_at": from_micros(NOW - 20 * MINUTE).isoformat()}, True),
        ({}, True),  # its last write was in 1970
    ],
)
def test_stale_miners(fields, stale):
    assert miners.is_stale(document("miner_status/1", fields), NOW, 15 * 60) is stale


# --- users -------------------------------------------------------------------------------------


def make(**owners: Document | None) -> tuple[Fields, tuple[Write, ...]]:
    given = {"user": None, "email_owner": None, "key_owner": None, **owners}
    decision = users.create("u", "a@b", "client", "key", {"netuid": None}, NOW, **given)
    return decision.answer, decision.writes


def test_a_user_is_made_with_its_indexes():
    made, writes = make()
    assert paths(writes) == ["users/u", "user_emails/a@b", "api_keys/key"]
    assert made["is_active"] is True
    assert made["netuid"] is None
    index = writes[2].fields or {}
    assert index == {"user_id": "u", "role": "client", "created_at": from_micros(NOW)}


@pytest.mark.parametrize(
    ("owners", "free"),
    [
        ({"user": document("users/u", {})}, False),
        ({"email_owner": document("users/v", {"email": "a@b"})}, False),
        ({"email_owner": document("users/v", {"email": "other"})}, True),
        ({"key_owner": document("users/v", {"api_key": "key"})}, False),
        ({"key_owner": document("users/v", {"api_key": "rotated"})}, True),
    ],
)
def test_emails_and_keys_are_unique(owners, free):
    if free:
        assert make(**owners)[1]
    else:
        with pytest.raises(AlreadyExists) as refused:
            make(**owners)
        assert "a@b" not in str(refused.value)  # messages hold no values


def test_a_rotation_takes_the_old_key_away():
    user = document("users/u", {"user_id": "u", "role": "miner", "api_key": "old"})
    decision = users.rotate(user, "u", "new", None, NOW)
    assert decision.answer["api_key"] == "new"
    assert paths(decision.writes) == ["users/u", "api_keys/new", "api_keys/old"]
    assert decision.writes[2].fields is None
    with pytest.raises(AlreadyExists):
        users.rotate(user, "u", "new", document("users/v", {"api_key": "new"}), NOW)


def test_an_upgrade_reaches_the_index():
    user = document("users/u", {"user_id": "u", "role": "client", "api_key": "k"})
    index = document("api_keys/k", {"user_id": "u", "role": "client"})
    decision = users.upgrade(user, index, "miner", {"uid": 3}, NOW)
    assert (decision.answer["role"], decision.answer["uid"]) == ("miner", 3)
    assert paths(decision.writes) == ["users/u", "api_keys/k"]
    with pytest.raises(InvalidArgument):
        users.upgrade(user, index, "miner", {"api_key": "x"}, NOW)


@pytest.mark.parametrize("email", ["", "  "])
def test_no_email_is_none(email):
    with pytest.raises(InvalidArgument):
        users.normal(email)
    assert users.normal("  A@B ") == "a@b"


# --- content and pages -------------------------------------------------------------------------


def test_a_put_replaces_and_a_merge_does_not():
    before = document("files/f", {"file_id": "f", "size": 1, "created_at": from_micros(1)})
    replaced = content.store(before, Write("files/f", {"a": 1}), "file_id", NOW, merge=False)
    assert replaced.answer == {
        "file_id": "f",
        "a": 1,
        "created_at": from_micros(1),
        "updated_at": from_micros(NOW),
    }
    update = Write("files/f", {"a": 1}, (("a",),))
    before = document("files/f", {**before.fields, "updated_at": from_micros(2)})
    merged = content.store(before, update, "file_id", NOW, merge=True).answer
    assert (merged["size"], merged["a"]) == (1, 1)
    assert merged["updated_at"] == from_micros(NOW)


def test_files_expire_by_whichever_time_they_have():
    old = from_micros(NOW - 60 * MINUTE)
    assert content.is_expired({"uploaded_at": old}, NOW, 60)
    assert content.is_expired({"created_at": old.isoformat()}, NOW, 60)
    assert not content.is_expired({"size": 1}, NOW, 60)


QUERY = Query(collection="tasks", where=FieldFilter(("status",), Op.EQUAL, "pending"))


@given(st.text(min_size=1).filter(lambda name: "/" not in name and not name.startswith("__")))
def test_a_token_leads_to_the_page_after_its_document(identity):
    try:
        token = pages.token_after(QUERY, f"tasks/{identity}")
    except UnicodeEncodeError:
        return
    paged = pages.page(QUERY, 10, token)
    assert paged.start == Cursor((Reference(f"tasks/{identity}"),), before=False)
    assert (paged.order_by, paged.limit) == ((Order(NAME),), 10)


@pytest.mark.parametrize("token", ["x", "****", "AAAAAAAAAAAA", "ü"])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(InvalidArgument):
        pages.page(QUERY, 10, token)


def test_a_token_of_another_list_is_refused():
    other = Query(collection="tasks", where=FieldFilter(("status",), Op.EQUAL, "failed"))
    with pytest.raises(InvalidArgument):
        pages.page(other, 10, pages.token_after(QUERY, "tasks/1"))


@pytest.mark.parametrize(("asked", "size"), [(0, 100), (7, 7), (5_000, 1_000)])
def test_the_size_of_a_page(asked, size):
    assert pages.size_of(asked) == size
    with pytest.raises(InvalidArgument):
        pages.size_of(-1)
