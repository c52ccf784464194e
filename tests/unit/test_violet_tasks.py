"""The decisions about tasks: what they write, what they refuse, and that the load of miners
is what tasks hold, whatever happens in whatever order."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfade.document import Document, Fields, from_micros
from crossfade.errors import CrossfadeError, FailedPrecondition, InvalidArgument
from crossfade.write import Transform, TransformKind, Write, apply_all
from violet.operations import assigning, loads, picking, responses, tasks
from violet.operations.assigning import Wanted

NOW = 1_800_000_000_000_000
MINUTE = 60_000_000


def task(fields: Fields, task_id: str = "t") -> Document:
    return Document(f"tasks/{task_id}", fields, 1, 1)


def status(uid: int, **fields: Any) -> Document:
    given = {"uid": uid, "is_serving": True, "current_load": 0, "max_capacity": 5, **fields}
    given.setdefault("last_seen", from_micros(NOW - MINUTE))
    return Document(f"miner_status/{uid}", given, 1, 1)


def statuses(*documents: Document) -> dict[int, Document | None]:
    return {picking.uid_of(document) or 0: document for document in documents}


def new_id(uid: int) -> str:
    return f"assignment {uid}"


def written(writes: Iterable[Write], path: str) -> Any:
    return next((write.fields for write in writes if write.path == path), None)


# --- creation and change -----------------------------------------------------------------------


def test_a_new_task_has_what_is_given_and_only_what_every_task_has_besides():
    made = tasks.create("t", {"model_id": None, "priority": "any word"}, NOW).answer
    times = {"created_at": from_micros(NOW), "updated_at": from_micros(NOW)}
    own = {"task_id": "t", "status": "pending"}
    assert made == {"model_id": None, "priority": "any word", **own, **times}


def test_a_new_task_must_not_say_another_id():
    with pytest.raises(InvalidArgument):
        tasks.create("t", {"task_id": "u"}, NOW)


def test_a_word_that_is_not_known_passes_through():
    update = Write("tasks/t", {"status": "paused"}, (("status",),))
    before = task({"task_id": "t", "status": "assigned", "assigned_miners": [1]})
    decision = tasks.change(before, update, statuses(status(1, current_load=1)), NOW)
    assert decision.answer.after["status"] == "paused"
    assert decision.answer.released == ()


def test_an_update_sets_paths_inside_of_maps_and_applies_transforms():
    before = task({"task_id": "t", "input_file": {"size": 1, "chunked": True}, "n": 2})
    update = Write(
        "tasks/t",
        {"input_file": {"size": 3}},
        (("input_file", "size"), ("input_file", "chunked")),
        (Transform(("n",), TransformKind.INCREMENT, 5),),
    )
    after = tasks.change(before, update, {}, NOW).answer.after
    assert after["input_file"] == {"size": 3}
    assert after["n"] == 7
    assert after["updated_at"] == from_micros(NOW)


def test_a_change_may_ask_for_the_status_before_it():
    update = Write("tasks/t", {"status": "cancelled"}, (("status",),))
    with pytest.raises(FailedPrecondition):
        tasks.change(task({"status": "completed"}), update, {}, NOW, {"pending"})


@pytest.mark.parametrize("word", loads.OVER)
def test_the_end_of_a_task_gives_back_each_load_once(word):
    before = task({"status": "assigned", "assigned_miners": [1, 2.0]})
    known = statuses(status(1, current_load=1), status(2, current_load=3.0))
    update = Write("tasks/t", {"status": word}, (("status",),))
    first = tasks.change(before, update, known, NOW)
    assert first.answer.released == (1, 2)
    assert written(first.writes, "miner_status/1")["current_load"] == 0
    lowered = written(first.writes, "miner_status/2")["current_load"]
    assert (lowered, type(lowered)) == (2, float)
    again = tasks.change(task(first.answer.after), update, known, NOW)
    assert again.answer.released == ()
    assert written(again.writes, "miner_status/1") is None


def test_what_came_after_the_end_gives_nothing_back_either():
    """completed, then approved, then set open by hand, then failed."""
    before = task({"status": "completed", "assigned_miners": [1]})
    known = statuses(status(1, current_load=4))
    for word in ("approved", "assigned", "failed"):
        update = Write("tasks/t", {"status": word}, (("status",),))
        decision = tasks.change(before, update, known, NOW)
        before = task(decision.answer.after)
        released = decision.answer.released
        # A task of a writer without assignments that is open again holds its miners' load.
        assert released == ((1,) if word == "failed" else ())


# --- assignment --------------------------------------------------------------------------------


def test_miners_are_added_to_those_that_there_are():
    before = task({"status": "pending", "assigned_miners": [1], "task_assignments": []})
    decision = assigning.assign(before, [2, 1, 2], statuses(status(2)), Wanted(), NOW, new_id)
    answer = decision.answer
    assert (answer.assigned, answer.already, answer.refused) == ((2,), (1,), ())
    assert answer.after["assigned_miners"] == [1, 2]
    assert answer.after["status"] == "assigned"
    assert written(decision.writes, "miner_status/2")["current_load"] == 1


def test_the_status_stays_until_there_are_enough():
    before = task({"status": "pending"})
    decision = assigning.assign(before, [1], {}, Wanted(min_count=2), NOW, new_id)
    assert not decision.answer.enough
    assert decision.answer.after["status"] == "pending"
    assert decision.answer.after["assigned_miners"] == [1]


def test_more_than_the_task_may_have_are_refused():
    before = task({"status": "pending", "max_miner_count": 2})
    answer = assigning.assign(before, [1, 2, 3], {}, Wanted(), NOW, new_id).answer
    assert (answer.assigned, answer.refused) == ((1, 2), ((3, "max_count"),))


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"current_load": 4, "max_capacity": 5}, True),
        ({"current_load": 5, "max_capacity": 5}, False),
        ({"current_load": 4.5, "max_capacity": 5.0}, False),
        ({"current_load": "many", "max_capacity": None}, True),
        ({"current_load": 0, "max_capacity": 0}, False),
    ],
)
def test_capacity(fields, fits):
    known = statuses(status(7, **fields))
    answer = assigning.assign(task({"status": "pending"}), [7], known, Wanted(), NOW, new_id).answer
    assert bool(answer.assigned) is fits
    assert answer.refused == (() if fits else ((7, "capacity"),))


def test_a_task_that_is_over_gets_nobody():
    with pytest.raises(FailedPrecondition):
        assigning.assign(task({"status": "done"}), [1], {}, Wanted(), NOW, new_id)


# --- responses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "earlier",
    [
        [{"miner_uid": 7}],
        [{"miner_uid": 7.0, "response": {"miner_uid": 7}}],
        [{"response": {"miner_uid": 7}}],
        {"7": {"output": "x"}},
        {"7": "x"},
    ],
)
def test_a_miner_responds_once_in_whatever_shape_the_first_one_is(earlier):
    before = task({"status": "assigned", "miner_responses": earlier})
    decision = responses.add(before, 7, {}, {}, NOW, "r")
    assert not decision.answer.accepted
    assert decision.writes == ()


def test_the_last_response_completes_the_task_and_each_gives_its_load_back():
    known = statuses(status(1, current_load=1), status(2, current_load=2))
    before = task({"status": "assigned", "assigned_miners": [1, 2]})
    first = responses.add(before, 1, {"output": "a"}, known, NOW, "r1")
    assert first.answer.after["status"] == "in_progress"
    assert [write.path for write in first.writes] == ["tasks/t", "miner_status/1"]
    second = responses.add(task(first.answer.after), 2, {}, known, NOW, "r2")
    assert second.answer.completed
    assert second.answer.after["status"] == "completed"
    assert "all_miners_completed_at" in second.answer.after
    assert [write.path for write in second.writes] == ["tasks/t", "miner_status/2"]


def test_a_map_of_responses_stays_a_map():
    before = task({"status": "assigned", "miner_responses": {"1": {"output": "x"}}})
    after: Any = responses.add(before, 2, {}, {}, NOW, "r").answer.after
    assert set(after["miner_responses"]) == {"1", "2"}


def test_failed_responses_are_dropped_and_others_kept_as_they_are():
    kept: Any = {"miner_uid": 2, "status": "completed"}
    failed: Any = [{"miner_uid": 1, "status": "failed"}, {"response": {"status": "error"}}]
    before = task({"miner_responses": [*failed, kept, "odd"]})
    assert responses.drop_failed(before, NOW).answer["miner_responses"] == [kept, "odd"]
    assert responses.drop_failed(task({"miner_responses": [kept]}), NOW).writes == ()


def test_the_best_response_is_found_at_any_depth():
    flushed = {
        "miner_uid": 2,
        "response": {"miner_uid": 2, "response_data": {"accuracy_score": 0.9}},
    }
    found = responses.completion(
        {
            "status": "processing",
            "assigned_miners": [1, 2, 3],
            "miner_responses": [{"miner_uid": 1, "accuracy_score": 0.5}, flushed],
        }
    )
    assert found.best == flushed
    assert (found.responded, found.missing) == ((1, 2), (3,))


# --- sweeps, validators, the end ---------------------------------------------------------------


@pytest.mark.parametrize("written_as", [from_micros, lambda now: from_micros(now).isoformat()[:-6]])
def test_stale_tasks_are_known_by_times_of_either_kind(written_as):
    def settle(minutes: int) -> Any:
        began = written_as(NOW - minutes * MINUTE)
        return tasks.settle_stale(
            task({"status": "assigned", "distributed_at": began}),
            {},
            NOW,
            asked={"assigned"},
            older_than=30 * 60,
            without_response="failed",
            with_response="",
        )

    assert settle(29) is None
    assert settle(31).answer.after["status"] == "failed"


def test_a_validator_sees_a_task_for_the_first_time_once():
    first = tasks.mark_seen(task({"validators_seen": ["other"]}), "me", NOW)
    assert first.answer == tasks.Seen(True, ("other", "me"))
    again = tasks.mark_seen(task(first.writes[0].fields or {}), "me", NOW)
    assert not again.answer.first
    assert again.writes == ()


def test_an_archived_task_is_the_task():
    fields: Fields = {"task_id": "t", "status": "completed", "odd": [None, 1.0]}
    decision = tasks.archive(task(fields), None, {}, NOW)
    assert decision.writes == (Write("archived_tasks/t", fields), Write("tasks/t", None))


def test_an_evaluation_counts_once():
    before = task({"status": "completed", "task_type": "tts"})
    first = tasks.evaluate(before, None, "evaluations/t_4", 4, {"overall_score": 1}, "", {}, NOW)
    made = written(first.writes, "evaluations/t_4")
    assert made["overall_score"] == 1
    assert made["task_type"] == "tts"
    assert written(first.writes, "tasks/t")["status"] == "approved"
    earlier = Document("evaluations/t_4", made, 1, 1)
    again = tasks.evaluate(before, earlier, "evaluations/t_4", 4, {}, "", {}, NOW)
    assert (again.answer.accepted, again.writes) == (False, ())


# --- picking -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "specialization",
    [{"tts": {"total": 1}}, "tts", "transcription, tts", ["tts"], "", None, [], {}],
)
def test_specializations_of_every_shape(specialization):
    offered = status(1, task_type_specialization=specialization)
    assert picking.pick([offered], "tts", NOW, limit=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"is_serving": False},
        {"is_serving": None},
        {"current_load": 5},
        {"task_type_specialization": "ttsx"},
        {"task_type_specialization": {"transcription": {}}},
        {"last_seen": from_micros(NOW - 16 * MINUTE)},
        {"last_seen": from_micros(NOW - 16 * MINUTE).isoformat()},
        {"last_seen": None},
    ],
)
def test_who_is_not_available(fields):
    assert picking.pick([status(1, **fields)], "tts", NOW, limit=1) == []


def test_the_best_come_first_and_init_never():
    offered = [
        status(1, performance_score=0.2),
        status(2, performance_score=0.9),
        status(3, performance_score=0.9, current_load=4),
        Document("miner_status/_init", {"uid": 4, "is_serving": True}, 1, 1),
    ]
    assert [miner.uid for miner in picking.pick(offered, "", NOW, limit=9)] == [2, 3, 1]


# --- any order of operations -------------------------------------------------------------------

MINERS = (1, 2, 3)
TASKS = ("a", "b", "c")
STEPS = st.one_of(
    st.tuples(st.just("assign"), st.sampled_from(TASKS), st.lists(st.sampled_from(MINERS))),
    st.tuples(st.just("respond"), st.sampled_from(TASKS), st.sampled_from(MINERS)),
    st.tuples(
        st.just("status"),
        st.sampled_from(TASKS),
        st.sampled_from(["assigned", "paused", "completed", "approved", "failed", "cancelled"]),
    ),
    st.tuples(st.just("requeue"), st.sampled_from(TASKS), st.none()),
    st.tuples(st.just("drop"), st.sampled_from(TASKS), st.none()),
    st.tuples(st.just("delete"), st.sampled_from(TASKS), st.none()),
)


class World:
    """Documents, and the decisions applied to them one after the other."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        for uid in MINERS:
            document = status(uid, max_capacity=2)
            self.documents[document.path] = document

    def statuses(self) -> dict[int, Document | None]:
        return {uid: self.documents.get(loads.status_path(uid)) for uid in MINERS}

    def perform(self, kind: str, name: str, what: Any) -> None:
        path = tasks.path_of(name)
        found = self.documents.get(path)
        if found is None:
            found = task({"task_id": name, "status": "pending"}, name)
        decision = self.decide(kind, found, what)
        if decision is not None:
            after, _ = apply_all(decision.writes, self.documents.get, NOW)
            for changed, document in after.items():
                self.documents.pop(changed, None)
                if document is not None:
                    self.documents[changed] = document

    def decide(self, kind: str, found: Document, what: Any) -> Any:
        known = self.statuses()
        if kind == "assign":
            decision = assigning.assign(found, what, known, Wanted(), NOW, new_id)
            if found.path not in self.documents and decision.writes:
                self.documents[found.path] = found
            return decision
        if found.path not in self.documents:
            return None
        if kind == "respond":
            return responses.add(found, what, {}, known, NOW, "r")
        if kind == "status":
            update = Write(found.path, {"status": what}, (("status",),))
            return tasks.change(found, update, known, NOW)
        if kind == "requeue":
            return tasks.requeue(found, known, NOW)
        if kind == "drop":
            return responses.drop_failed(found, NOW)
        return tasks.delete(found, [], known, NOW)

    def holding(self, uid: int) -> int:
        held = [
            tasks.still_held(document)
            for path, document in self.documents.items()
            if path.startswith("tasks/")
        ]
        return sum(uid in miners for miners in held)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_a_load_is_the_number_of_tasks_that_hold_it(steps):
    world = World()
    for kind, name, what in steps:
        try:
            world.perform(kind, name, what)
        except CrossfadeError as error:
            assert isinstance(error, FailedPrecondition)  # noqa: PT017
        for uid in MINERS:
            fields: Any = world.documents[loads.status_path(uid)].fields
            assert fields["current_load"] == world.holding(uid)
            assert 0 <= fields["current_load"] <= fields["max_capacity"]
        for path, document in world.documents.items():
            if path.startswith("tasks/"):
                miners: Any = document.fields.get("assigned_miners", [])
                assert len(miners) == len(set(miners))
                answered = [responses.miner_of(each) for each in responses.stored(document.fields)]
                assert len(answered) == len(set(answered))


ODD: Any = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(max_size=5),
        st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    ),
    lambda inner: st.one_of(
        st.lists(inner.filter(lambda value: not isinstance(value, list)), max_size=3),
        st.dictionaries(st.sampled_from(["miner_uid", "status", "7", "response"]), inner),
    ),
    max_leaves=8,
)
NAMES = [
    *("status", "assigned_miners", "task_assignments", "miner_responses", "validators_seen"),
    *("validators_seen_timestamps", "min_miner_count", "max_miner_count", "distributed_at"),
    *("current_load", "max_capacity", "assigned_task_count", "response_count", "evaluated_by"),
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ODD), st.dictionaries(st.sampled_from(NAMES), ODD))
def test_no_value_of_any_type_is_more_than_a_decision_can_take(fields, miner):
    """Documents have many writers: a decision about an odd one refuses, or writes legally."""
    document = task(fields)
    known = statuses(Document("miner_status/7", miner, 1, 1))
    decisions: list[Any] = [
        lambda: assigning.assign(document, [7, 8], known, Wanted(), NOW, new_id),
        lambda: responses.add(document, 7, {}, known, NOW, "r"),
        lambda: responses.drop_failed(document, NOW),
        lambda: tasks.mark_seen(document, "me", NOW),
        lambda: tasks.requeue(document, known, NOW),
        lambda: tasks.delete(document, [], known, NOW),
        lambda: tasks.change(
            document, Write("tasks/t", {"status": "failed"}, (("status",),)), known, NOW
        ),
    ]
    stored: dict[str, Document] = {document.path: document, "miner_status/7": known[7]}  # type: ignore[dict-item]
    for decide in decisions:
        try:
            decision = decide()
        except FailedPrecondition:
            continue
        if decision is not None:
            apply_all(decision.writes, stored.get, NOW)
    responses.completion(fields)
    picking.pick([known[7]], "tts", NOW, limit=1)  # type: ignore[list-item]


def test_a_response_asks_for_no_other_miners_status_unless_it_is_the_last():
    before = task({"status": "assigned", "assigned_miners": [1, 2, 3]})
    assert responses.giving(before, 2, 0) == [2]
    assert responses.giving(before, 2, 1) == [1, 2, 3]
    assert responses.giving(before, 9, 0) == []


def test_automatic_assignment_reads_as_many_candidates_as_it_lacks():
    before = task({"status": "pending", "assigned_miners": [1], "required_miner_count": 3})

    def more(known: Any) -> Any:
        return assigning.candidates_to_read(before, [1, 2, 3, 4, 5], known, "", 0, 900, NOW)

    assert more({}) == [2, 3]
    known = statuses(status(2), status(3, current_load=5))
    assert more(known) == [4]
    assert more({**known, **statuses(status(4))}) == []
    assert more({**known, 4: None}) == [5]
    found = assigning.auto_assign(
        before, [1, 2, 3, 4], {**known, **statuses(status(4))}, "", 0, 900, NOW, new_id
    )
    assert found.answer.assigned == (2, 4)
