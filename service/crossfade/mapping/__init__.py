"""Documents as rows: the tagged JSON encoding, column codecs, collection mappings. Pure.

The law: `to_document(to_row(d)) == d` for every legal document, to the last bit. A
value that its column cannot hold (another type, explicit null, a NUL character, a
text too long for the column's index, a word outside an enum) or that a constraint
refuses (a reference without its parent, a second holder of a unique value) is in the
`remainder` with its type; a field without a column is there too; an absent field is a
NULL column and nothing else.

`misfits` names the columned fields that a row has in its remainder, and is NULL in
nearly every row. It is what lets a query trust the columns of all other rows.
"""

from crossfade.mapping.codecs import (
    BoolCodec,
    BytesCodec,
    Codec,
    DoubleCodec,
    Int8Codec,
    IntArrayCodec,
    JsonCodec,
    TextCodec,
    TimeCodec,
)
from crossfade.mapping.collection import (
    EXPLAINED,
    REFUSED,
    Cause,
    CollectionMapping,
    FieldColumn,
    ForeignField,
    Mappings,
    Row,
    Watch,
    columns_of,
    pattern_of,
)
from crossfade.mapping.derived import DerivedMapping, FromColumns, FromElements
from crossfade.mapping.tables import (
    INDEXED_TEXT_BYTES,
    derived_table,
    document_columns,
    document_table,
    misfit_index,
    nested_table,
    reference_column,
    text_column,
    unique_column,
    word_column,
)
from crossfade.mapping.tagged import (
    ODD,
    escape_path,
    from_json,
    is_odd,
    to_json,
    unescape_path,
)

__all__ = [
    "EXPLAINED",
    "INDEXED_TEXT_BYTES",
    "ODD",
    "REFUSED",
    "BoolCodec",
    "BytesCodec",
    "Cause",
    "Codec",
    "CollectionMapping",
    "DerivedMapping",
    "DoubleCodec",
    "FieldColumn",
    "ForeignField",
    "FromColumns",
    "FromElements",
    "Int8Codec",
    "IntArrayCodec",
    "JsonCodec",
    "Mappings",
    "Row",
    "TextCodec",
    "TimeCodec",
    "Watch",
    "columns_of",
    "derived_table",
    "document_columns",
    "document_table",
    "escape_path",
    "from_json",
    "is_odd",
    "misfit_index",
    "nested_table",
    "pattern_of",
    "reference_column",
    "text_column",
    "to_json",
    "unescape_path",
    "unique_column",
    "word_column",
]
