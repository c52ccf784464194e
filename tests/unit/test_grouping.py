"""Groups of collections: which one a document is of, and what a change of them may do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.errors import FailedPrecondition
from crossfade.groups import DEFAULT, Group, Groups, groups_of, shown, sources
from crossfade.identities import FIRESTORE, POSTGRESQL, UNBOUND, Identities, kind_of, reads_only
from crossfade.jobs.regroup import Standing, plan
from crossfade.loading import load
from crossfade.mapping import DerivedMapping
from crossfade.plan import Stage, StoreName
from crossfade.settings import GroupSettings, Settings, SettingsError
from crossfade.starting import check_groups
from violet.mapping import MAPPINGS

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
LAYOUTS = (
    st.dictionaries(st.sampled_from(["x", "y", "z"]), st.sets(NAMES, min_size=1))
    .map(
        lambda given: {
            name: of - set().union(*(given[other] for other in given if other < name))
            for name, of in given.items()
        }
    )
    .map(lambda given: {name: of for name, of in given.items() if of})
)


@given(LAYOUTS)
def test_every_collection_is_of_exactly_one_group(layout):
    groups = Groups(layout)
    for collection in "abcdefgh":
        assert [g.name for g in groups.all if g.holds(collection)] == [groups.of(collection)]
    assert groups.of("h") == DEFAULT
    assert groups.spanned(["a/1", "p/1/a/2"]) == (groups.of("a"),)
    for one in groups.all:
        assert one.layout == groups.layout
        assert one.wildcards == (one.collections if one.named else ("",))


@given(LAYOUTS, LAYOUTS)
def test_a_layout_says_all_of_its_groups(first, second):
    one, other = Groups(first), Groups(second)
    assert groups_of(one.layout).layout == one.layout
    assert (one.layout == other.layout) == (first == second)
    assert shown(one.layout).count(" with ") == max(len(first), 1)


@given(LAYOUTS, LAYOUTS)
def test_a_change_knows_where_every_collection_comes_from(first, second):
    before, after = Groups(first), Groups(second)
    of = sources(before, after)
    for collection in "abcdefgh":
        assert before.of(collection) in of[after.of(collection)]
    assert all(name in before for names in of.values() for name in names)


def test_a_collection_goes_only_where_its_stage_stays_the_same():
    before, after = Groups({"text": ["notes"]}), Groups({"text": ["notes", "files"]})
    same = {DEFAULT: Standing(Stage.SHADOW, 3), "text": Standing(Stage.SHADOW, 7)}
    change = plan(before, after, same)
    assert change.epoch == 8
    assert change.stage("text") is Stage.SHADOW
    apart = same | {"text": Standing(Stage.LIVE, 7)}
    with pytest.raises(FailedPrecondition, match="text in stage live, default in stage shadow"):
        plan(before, after, apart)
    # What stays where it is may stand where it likes.
    assert (
        plan(before, Groups({"text": ["notes"], "more": ["files"]}), apart).stage("more")
        is Stage.SHADOW
    )
    with pytest.raises(FailedPrecondition, match="under way in text"):
        plan(before, after, same | {"text": Standing(Stage.SHADOW, 7, moving=True)})


def test_an_id_of_a_transaction_knows_the_epoch_of_every_group():
    identities = Identities([DEFAULT, "text"])
    epochs = {DEFAULT: 3, "text": 2**40}
    for authority, kind in (
        (StoreName.FIRESTORE, FIRESTORE),
        (StoreName.POSTGRESQL, POSTGRESQL),
        (None, UNBOUND),
    ):
        made = identities.make(authority, epochs, b"handle", read_only=authority is None)
        assert identities.legal(made)
        assert kind_of(made) == kind
        assert reads_only(made) is (authority is None)
        assert identities.epochs(made) == epochs
        assert identities.handle(made) == b"handle"
    assert not identities.legal(b"f" + b"0" * 16)
    assert not identities.legal(b"x" + b"0" * 20)


def test_what_is_derived_belongs_to_its_owners_group():
    check_groups(Groups({"people": ["users", "user_emails", "api_keys"]}), MAPPINGS)
    for mapping in MAPPINGS:
        if isinstance(mapping, DerivedMapping):
            name = mapping.collection_id
            with pytest.raises(SettingsError, match=f"{name} is derived from"):
                check_groups(Groups({"people": [name]}), MAPPINGS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[groups.text]", "collections"),
        ("[groups.text]\ncollections = []", "collections"),
        ('[groups.text]\ncollections = ["a/b"]', "collection"),
        ('[groups.text]\ncollections = ["_crossfade_x"]', "Crossfade's own"),
        ('[groups.default]\ncollections = ["a"]', "that no other has"),
        ('[groups.Text]\ncollections = ["a"]', "pattern"),
        ('[groups.a]\ncollections = ["n", "n"]', "named 2 times"),
        ('[groups.a]\ncollections = ["n"]\n[groups.b]\ncollections = ["n"]', "named 2 times"),
        ('[groups.a]\ncollections = ["n"]\nstage = "shadow"', "needs PostgreSQL"),
        ('[groups.a]\ncollections = ["n"]\nstages = "off"', 'did you mean "stage"'),
    ],
)
def test_groups_that_cannot_be_are_refused_with_the_reason(tmp_path, monkeypatch, text, why):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    file = tmp_path / "crossfade.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=why):
        load(file)


def test_each_group_asks_for_its_own_stage():
    settings = Settings(
        groups={
            "text": GroupSettings(collections=("notes",), stage=Stage.LIVE),
            "rest": GroupSettings(collections=("files",)),
        }
    )
    assert settings.requested_stages() == {"text": Stage.LIVE}
    assert [group.name for group in settings.grouping().all] == [DEFAULT, "rest", "text"]
    assert settings.grouping().all[0] == Group(
        DEFAULT, ("files", "notes"), settings.grouping().layout
    )
