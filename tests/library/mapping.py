"""A small mapping that is not violet's: a lending library, with every kind of column, enum,
reference, unique and derived collection. docs/mapping.md walks through it."""

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, DateTime, Double, Index, MetaData
from sqlalchemy.dialects.postgresql import JSONB

from crossfade.mapping import (
    CollectionMapping,
    DerivedMapping,
    FromColumns,
    FromElements,
    Mappings,
    derived_table,
    document_table,
    nested_table,
    reference_column,
    text_column,
    unique_column,
    word_column,
)

metadata = MetaData(schema="library")

readers = document_table(
    "readers",
    metadata,
    text_column("name"),
    unique_column("card"),
    unique_column("mail"),
    Column("since", DateTime(timezone=True)),
    Column("level", BigInteger),
    Column("visits", JSONB),
)

books = document_table(
    "books",
    metadata,
    text_column("title"),
    word_column("state", "shelved", "lent", "lost"),
    reference_column("reader", readers),
    Column("rating", Double),
    Column("rare", Boolean),
    Column("pages", BigInteger),
    Column("shelves", ARRAY(BigInteger)),
    Index("books_state", "state"),
)
# A column that is added to a table later may refer to the table itself.
books.append_column(reference_column("sequel_of", books))
Index("books_sequel_of", books.c.sequel_of)

loans = document_table(
    "loans",
    metadata,
    reference_column("book_id", books, field="book"),
    reference_column("reader_id", readers, field="reader"),
    Column("at", DateTime(timezone=True)),
)

notes = nested_table("notes", metadata, books, text_column("text"), reference_column("by", readers))

_readers = CollectionMapping("readers", readers)
_books = CollectionMapping("books", books)

MAPPINGS = Mappings(
    [
        _readers,
        _books,
        CollectionMapping("notes", notes, parent=_books),
        CollectionMapping("loans", loans),
        DerivedMapping(
            "cards",
            derived_table("cards", metadata, readers),
            _readers,
            FromColumns("card", {"name": "name", "since": "since", "level": "level"}),
        ),
        DerivedMapping(
            "visits",
            derived_table("visits", metadata, readers),
            _readers,
            FromElements("visits", "day"),
        ),
    ]
)
