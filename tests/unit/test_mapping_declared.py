"""A mapping is read off its table: words, references, uniques, derived collections."""

import ast
import inspect
import math
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Double, MetaData, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB

import violet.mapping
import violet.tables
from crossfade.document import identical
from crossfade.mapping import (
    EXPLAINED,
    REFUSED,
    Cause,
    CollectionMapping,
    DerivedMapping,
    FromColumns,
    FromElements,
    derived_table,
    document_table,
    reference_column,
    text_column,
    unique_column,
    word_column,
)
from tests import strategies
from tests.library.mapping import MAPPINGS

NAMES = st.sampled_from(
    [
        *("name", "card", "mail", "since", "level", "visits", "title", "state", "reader"),
        *("sequel_of", "rating", "rare", "pages", "shelves", "book", "at", "day", "other"),
        *("$", "n\0", "of_name"),
    ]
)
HOSTILE = st.one_of(
    strategies.values(2),
    st.sampled_from([math.nan, -0.0, 2**63 - 1, -(2**63), 2**53 + 1, float(2**53), "a\0", "lent"]),
    st.just({"a": {"b": {"c": [{"$d": {"$m": []}}]}}}),
)


@pytest.mark.parametrize("collection", ["readers", "books", "loans", "cards", "visits"])
def test_the_law_for_every_kind_of_mapping(collection: str):
    mapping = MAPPINGS.get(collection)
    assert mapping is not None

    @given(st.dictionaries(NAMES, HOSTILE, max_size=8))
    def check(fields: dict[str, Any]) -> None:
        row = mapping.to_row(fields)
        remainder = orjson.loads(orjson.dumps(row.remainder))
        assert identical(mapping.to_fields(row.values, remainder), fields)

    check()


BOOKS, READERS, CARDS = (MAPPINGS.get(name) for name in ("books", "readers", "cards"))
assert BOOKS is not None
assert READERS is not None
assert CARDS is not None


@pytest.mark.parametrize(
    ("mapping", "field", "value", "cause"),
    [
        (BOOKS, "colour", 1, Cause.NO_COLUMN),
        (BOOKS, "title", None, Cause.NULL),
        (BOOKS, "title", 1, Cause.TYPE),
        (BOOKS, "pages", 1.0, Cause.TYPE),
        (BOOKS, "pages", True, Cause.TYPE),
        (BOOKS, "title", "a\0", Cause.RANGE),
        (BOOKS, "reader", "x" * 601, Cause.RANGE),
        (BOOKS, "rating", math.nan, Cause.RANGE),
        (BOOKS, "shelves", ["1"], Cause.RANGE),
        (BOOKS, "state", "burnt", Cause.WORD),
        (BOOKS, "state", "a\0", Cause.WORD),
        (BOOKS, "reader", "nobody", Cause.REFERENCE),
        (READERS, "card", "taken", Cause.DUPLICATE),
        (BOOKS, "pages", 1, Cause.WAITING),
        (CARDS, "name", "n", Cause.OWNER),
        (CARDS, "colour", "n", Cause.NO_COLUMN),
        (MAPPINGS.get("visits"), "colour", "n", Cause.OWNER),
    ],
)
def test_why_a_value_is_in_the_remainder(
    mapping: CollectionMapping, field: str, value: Any, cause: Cause
):
    assert mapping.cause(field, value) is cause
    assert EXPLAINED[cause]


def test_every_cause_is_explained_and_refusals_are_those_of_types_and_constraints():
    assert set(EXPLAINED) == set(Cause)
    assert {cause.name for cause in REFUSED} == {
        *("TYPE", "RANGE", "WORD", "REFERENCE", "DUPLICATE"),
    }


def test_what_is_read_off_the_table():
    assert [(r.entry.field, r.target.name) for r in BOOKS.references] == [
        ("reader", "readers"),
        ("sequel_of", "books"),
    ]
    assert [entry.column for entry in READERS.uniques] == ["card", "mail"]
    assert {index.name for index in BOOKS.table.indexes} == {
        *("books_state", "books_reader", "books_sequel_of", "books_misfits"),
    }
    loans = MAPPINGS.get("loans")
    assert loans is not None
    assert loans.by_field["book"].column == "book_id"


def _table(*columns: Any) -> Any:
    return document_table("t", MetaData(schema="s"), *columns)


OTHER = document_table("o", MetaData(schema="s"), unique_column("k"), Column("n", Double))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([Column("n", BigInteger, unique=True)], "only plain texts"),
        ([unique_column("k", field="$k")], 'may not begin with "\\$"'),
        ([text_column("a"), text_column("b"), UniqueConstraint("a", "b")], "several columns"),
        ([Column("n", JSONB(), unique=True)], "only plain texts"),
    ],
)
def test_what_cannot_be_declared(columns: list[Any], message: str):
    with pytest.raises(TypeError, match=message):
        CollectionMapping("t", _table(*columns))


def test_a_reference_is_not_unique():
    metadata = MetaData(schema="s")
    other = document_table("o", metadata)
    column = reference_column("o_id", other)
    column.unique = True
    table = document_table("t", metadata, column)
    with pytest.raises(TypeError, match="a reference and unique"):
        CollectionMapping("t", table)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (FromColumns("n", {}), "a unique column"),
        (FromColumns("k", {"a": "n"}), "cannot be a double"),
        (FromColumns("k", {"$a": "k"}), "cannot have this name"),
        (FromElements("k", "m"), "jsonb array"),
    ],
)
def test_what_cannot_be_derived(rule: Any, message: str):
    with pytest.raises(TypeError, match=message):
        DerivedMapping(
            "d", derived_table("d", OTHER.metadata, OTHER), CollectionMapping("o", OTHER), rule
        )
    OTHER.metadata.remove(OTHER.metadata.tables["s.d"])


def test_a_word_with_a_quote():
    table = _table(word_column("w", "it's", "fine"))
    assert CollectionMapping("t", table).to_row({"w": "it's"}).values == ("it's",)


def test_times_of_the_last_microsecond():
    loans = MAPPINGS.get("loans")
    assert loans is not None
    at = datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    row = loans.to_row({"at": at})
    assert row.remainder is None
    assert at in row.values


@pytest.mark.parametrize("module", [violet.mapping, violet.tables])
def test_violets_mapping_holds_only_declarations(module: Any):
    """Nothing that decides or repeats, nothing but tables and the words to declare them with."""
    tree = ast.parse(inspect.getsource(module))
    kinds = {type(node) for node in ast.walk(tree)}
    assert not kinds & {ast.For, ast.While, ast.Try, ast.With, ast.If, ast.ClassDef, ast.Lambda}
    assert not kinds & {ast.AsyncFunctionDef, ast.Match, ast.Raise, ast.Delete, ast.Global}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    sources = {str(node.module).split(".")[0] for node in imports}
    assert sources <= {"typing", "sqlalchemy", "crossfade", "violet"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
