"""What the tables of documents are declared with: SQLAlchemy tables, and a few kinds of column."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import SchemaItem

INDEXED_TEXT_BYTES = 600
"""Four such columns fit one index entry."""


def document_table(name: str, metadata: MetaData, *items: SchemaItem) -> Table:
    """A table of documents: the columns of its fields, constraints, indexes.

    Adds the columns that every such table has, and the indexes that queries over
    misfits and the deletion of what it refers to need.
    """
    table = Table(name, metadata, *document_columns(), *items)
    leading = {str(column.name) for index in table.indexes for column in index.columns[:1]}
    for key in sorted(table.foreign_keys, key=lambda key: str(key.parent.name)):
        if key.parent.name not in leading:
            Index(f"{name}_{key.parent.name}", key.parent)
    misfit_index(table)
    return table


def derived_table(name: str, metadata: MetaData, owner: Table) -> Table:
    """The table of a collection that is held in another one's: what a derived document has of
    its own. Without an `owner`, its whole content is in the remainder."""
    table = Table(
        name,
        metadata,
        *document_columns(),
        Column("owner", Text(collation="C"), ForeignKey(owner.c.id)),
    )
    Index(f"{name}_owner", table.c.owner, postgresql_where=table.c.owner.is_not(None))
    # A query by containment, in the documents that are kept as they are.
    Index(
        f"{name}_remainder",
        table.c.remainder,
        postgresql_using="gin",
        postgresql_ops={"remainder": "jsonb_path_ops"},
        postgresql_where=table.c.owner.is_(None),
    )
    misfit_index(table)
    return table


def nested_table(name: str, metadata: MetaData, parent: Table, *items: SchemaItem) -> Table:
    """The table of a subcollection: the id is the parent document's id, "/", and its own.

    `parent` is the parent document's id while there is one: in Firestore, documents may
    lie below a document that is not there.
    """
    column = Column("parent", Text(collation="C"), ForeignKey(parent.c.id), info={"own": True})
    return document_table(name, metadata, column, *items)


def document_columns() -> list[Column[Any]]:
    """The columns every mapped table has besides those of its fields."""
    return [
        Column("id", Text(collation="C"), primary_key=True),
        Column("remainder", JSONB),
        Column("misfits", ARRAY(Text)),
        Column("create_time", BigInteger, nullable=False),
        Column("update_time", BigInteger, nullable=False),
        Column("epoch", BigInteger, nullable=False),
    ]


OWN_COLUMNS = frozenset(str(column.name) for column in document_columns())


def text_column(name: str, *, field: str | None = None) -> Column[str]:
    """A text column in byte order, which is Firestore's order of strings."""
    return Column(name, Text(collation="C"), info=_named(field))


def word_column(name: str, *words: str, field: str | None = None) -> Column[str]:
    """An enum: a text column with a check constraint. Other words stay in the remainder."""
    listed = ", ".join("'" + word.replace("'", "''") + "'" for word in words)
    info = _named(field) | {"words": frozenset(words)}
    check = CheckConstraint(f"{name} in ({listed})")
    return Column(name, Text(collation="C"), check, info=info)


def reference_column(name: str, target: Table, *, field: str | None = None) -> Column[str]:
    """A foreign key: the id of a document of another table. An id of which there is no
    document stays in the remainder until there is one."""
    return Column(name, Text(collation="C"), ForeignKey(target.c.id), info=_named(field))


def unique_column(name: str, *, field: str | None = None) -> Column[str]:
    """A text that one document holds. A second holder's stays in the remainder until the
    first has let it go."""
    return Column(name, Text(collation="C"), unique=True, info=_named(field))


def misfit_index(table: Table) -> Index:
    """What finds the few rows whose columns do not tell everything."""
    return Index(
        f"{table.name}_misfits",
        table.c.misfits,
        postgresql_using="gin",
        postgresql_where=table.c.misfits.is_not(None),
    )


def _named(field: str | None) -> dict[str, Any]:
    """Field name where it is another than the column's."""
    return {} if field is None else {"field": field}
