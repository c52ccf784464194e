"""Routing: the stage table, buckets, and what raising or lowering a percent does."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.plan import BUCKETS, STAGES, Stage, StoreName, bucket, decide, plan
from crossfade.snapshot import Snapshot, Traffic

F, P = StoreName.FIRESTORE, StoreName.POSTGRESQL


@pytest.mark.parametrize(
    ("stage", "authority", "mirrored", "answer", "shadow"),
    [
        ("off", F, False, F, None),
        ("dual_write", F, True, F, None),
        ("shadow", F, True, F, P),
        ("live", P, True, P, F),
        ("ramp_down", P, True, P, None),
        ("complete", P, False, P, None),
    ],
)
def test_a_stage_without_configured_percent_routes_as_its_line_of_the_table(
    stage, authority, mirrored, answer, shadow
):
    made = plan(Stage(stage), "salt", None, 1.0)
    route = decide(made, "tasks/1", 0.0)
    assert (route.authority, route.mirrored, route.answer, route.shadow) == (
        authority,
        mirrored,
        answer,
        shadow,
    )


@pytest.mark.parametrize("stage", ["off", "dual_write", "ramp_down", "complete"])
@pytest.mark.parametrize("percent", [0.0, 37.0, 100.0])
def test_a_percent_moves_nothing_where_the_table_says_authority(stage, percent):
    made = plan(Stage(stage), "salt", percent, 1.0)
    assert decide(made, "tasks/1", 0.0).answer is STAGES[Stage(stage)].authority


@given(
    st.text(min_size=1),
    st.floats(0, 100),
    st.floats(0, 100),
    st.sampled_from(["live", "shadow"]),
)
def test_raising_a_percent_only_adds_keys(key, one, other, stage):
    low, high = sorted((one, other))
    at_low = decide(plan(Stage(stage), "salt", low, 0.0), key, 0.5).answer
    at_high = decide(plan(Stage(stage), "salt", high, 0.0), key, 0.5).answer
    assert not (at_low is P and at_high is F)


@pytest.mark.parametrize("percent", [1.0, 10.0, 50.0, 99.0])
def test_the_share_of_keys_is_the_percent(percent):
    made = plan(Stage.SHADOW, "read:tasks", percent, 0.0)
    answered = sum(decide(made, f"tasks/{i}", 0.5).answer is P for i in range(100_000))
    assert abs(answered / 1_000 - percent) < 0.5


def test_buckets_differ_by_salt_and_stay_in_range():
    ours = [bucket(b"a", f"tasks/{i}") for i in range(1_000)]
    theirs = [bucket(b"b", f"tasks/{i}") for i in range(1_000)]
    assert ours != theirs
    assert all(0 <= number < BUCKETS for number in ours)


def test_the_shadow_rate_is_the_share_of_draws():
    made = plan(Stage.SHADOW, "salt", 0.0, 0.25)
    assert decide(made, "tasks/1", 0.24).shadow is P
    assert decide(made, "tasks/1", 0.25).shadow is None


def test_deciding_makes_no_new_routes():
    made = plan(Stage.SHADOW, "salt", 50.0, 1.0)
    routes = {id(decide(made, f"tasks/{i}", 0.0)) for i in range(100)}
    assert len(routes) == 2
    assert replace(decide(made, "tasks/1", 0.0)) == decide(made, "tasks/1", 0.0)


@given(st.text(min_size=1), st.text(min_size=1), st.floats(0, 100))
def test_a_key_stays_where_it_is_as_long_as_salt_and_percent_do(salt, key, percent):
    answers = {decide(plan(Stage.SHADOW, salt, percent, 0.0), key, 0.5).answer for _ in range(3)}
    assert len(answers) == 1


@given(st.data(), st.sampled_from([Stage.SHADOW, Stage.LIVE]))
def test_lowering_a_percent_only_removes_keys(data, stage):
    percents = sorted(data.draw(st.lists(st.floats(0, 100), min_size=2, max_size=4)), reverse=True)
    keys = [f"tasks/{n}" for n in range(200)]
    before: set[str] | None = None
    for percent in percents:
        made = plan(stage, "salt", percent, 0.0)
        held = {key for key in keys if decide(made, key, 0.5).answer is P}
        assert before is None or held <= before
        before = held


def test_salts_of_any_length_are_told_apart():
    long = "x" * 80
    shares = [
        [decide(plan(Stage.SHADOW, salt, 50, 0.0), f"t/{n}", 0.5).answer for n in range(100)]
        for salt in (long + "a", long + "b")
    ]
    assert shares[0] != shares[1]


@pytest.mark.parametrize("salt", [None, "x"])
def test_collections_with_one_salt_do_not_move_the_same_documents_first(salt):
    traffic = {"": Traffic(50.0, 0.0, salt)}
    snapshot = Snapshot(Stage.SHADOW, 1, 1, traffic=traffic)
    keys = [f"key/{n}" for n in range(1_000)]
    held = [
        {key for key in keys if decide(snapshot.plan_of(name), key, 0.5).answer is P}
        for name in ("tasks", "users")
    ]
    assert 150 < len(held[0] & held[1]) < 350
