"""The collections of tests/strategies.py as tables, and stories whose values fit them or not."""

from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    LargeBinary,
    MetaData,
)
from sqlalchemy.dialects.postgresql import JSONB

from crossfade.document import collection_path
from crossfade.mapping import (
    CollectionMapping,
    DerivedMapping,
    FromColumns,
    Mappings,
    derived_table,
    document_table,
    nested_table,
    pattern_of,
    reference_column,
    text_column,
    unique_column,
    word_column,
)
from crossfade.write import Write
from tests.contract.protocol import BatchWrite, Commit, Request
from tests.contract.requests import Story, stories
from tests.strategies import IDS

_MOMENTS = [datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)]
metadata = MetaData(schema="differential")


def _mappings() -> Mappings:
    """Every field of every collection has a column, and every kind of column is there."""
    d = document_table(
        "d",
        metadata,
        unique_column("a"),
        Column("b", BigInteger),
        Column("c", JSONB),
        text_column("dotted", field="a.b"),
        Column("quoted", Double, info={"field": "`\\"}),
        Column("accented", Boolean, info={"field": "ünï"}),
        Column("zero", DateTime(timezone=True), info={"field": "0"}),
    )
    c = document_table(
        "c",
        metadata,
        word_column("a", "a", "b", "ä"),
        reference_column("b", d),
        Column("c", Double),
        Column("dotted", JSONB, info={"field": "a.b"}),
        Column("quoted", LargeBinary, info={"field": "`\\"}),
        unique_column("accented", field="ünï"),
        Column("zero", ARRAY(BigInteger), info={"field": "0"}),
        Index("c_a", "a"),
    )
    inner = nested_table(
        "inner",
        metadata,
        c,
        text_column("a"),
        Column("b", BigInteger),
        reference_column("c", d),
        reference_column("dotted", c, field="a.b"),
        Column("quoted", Boolean, info={"field": "`\\"}),
        Column("accented", JSONB, info={"field": "ünï"}),
        Column("zero", DateTime(timezone=True), info={"field": "0"}),
    )
    holders, root = CollectionMapping("d", d), CollectionMapping("c", c)
    # sub/X is the document of the d whose `a` is X.
    derived = DerivedMapping(
        "sub", derived_table("sub", metadata, d), holders, FromColumns("a", {"b": "b", "0": "zero"})
    )
    nested = CollectionMapping("sub", inner, parent=root)
    return Mappings([holders, root, derived, nested])


MAPPED = _mappings()

_NAMES = ["a", "b", "B", "7"]
FITTING: dict[str, dict[str, list[Any]]] = {
    "d": {
        "a": _NAMES,
        "b": [0, 1, 2**53 + 1],
        "c": [{"a": 1}, [], ["a", None, -0.0], {}],
        "a.b": ["", "a", "ä", "\U0001f600"],
        "`\\": [0.0, -0.0, 1.5, 5e-324],
        "ünï": [True, False],
        "0": _MOMENTS,
    },
    "c": {
        "a": ["a", "b", "ä"],
        "b": IDS[:5],
        "c": [0.0, -0.0, 1.5, float(2**53)],
        "a.b": [{"a": 1}, [], [1, "a"], {"b": {}}],
        "`\\": [b"", b"a", b"\x00"],
        "ünï": _NAMES,
        "0": [[], [1], [1, 2, 2**53]],
    },
    "c/*/sub": {
        "a": ["a", "b", ""],
        "b": [1, 2, -(2**63)],
        "c": IDS[:5],
        "a.b": IDS[:5],
        "`\\": [True, False],
        "ünï": [{}, {"a": [1]}],
        "0": _MOMENTS,
    },
    "sub": {"b": [0, 1, 2**53 + 1], "0": _MOMENTS},
}
"""Values that a column has room for, by collection and field. Whether a reference finds its
document, and a unique value a holder, is left to chance."""


@st.composite
def fitting_stories(draw: st.DrawFn, share: float) -> Story:
    """Stories of which about `share` of the values fit their columns."""
    story, chance = draw(stories(listing=False)), Random(draw(st.integers(0, 2**32)))
    return Story([_fitting(request, share, chance) for request in story.requests])


def _fitting(request: Request, share: float, chance: Random) -> Request:
    if not isinstance(request, Commit | BatchWrite):
        return request
    return replace(request, writes=[_fit(write, share, chance) for write in request.writes])


def _fit(write: Write, share: float, chance: Random) -> Write:
    """Its own fields with other values, and, where it is a set, some more."""
    pools = FITTING[pattern_of(collection_path(write.path))]
    if not write.fields:
        return write
    fields = dict(write.fields)
    for name, pool in pools.items():
        whole = write.mask is None and chance.random() < 0.3
        if (name in fields or whole) and chance.random() < share:
            fields[name] = chance.choice(pool)
    return replace(write, fields=fields)
