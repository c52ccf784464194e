"""Names and texts of our own declarations in SQL. Values are always parameters."""

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import dialect

_preparer = dialect().identifier_preparer  # type: ignore[no-untyped-call]


def name_of(table: Table) -> str:
    return _preparer.format_table(table)


def quoted(name: str) -> str:
    """Always in quotes: PL/pgSQL reserves words that SQL does not ("by")."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def lock(kind: str, name: str) -> str:
    """Locks a name, which is an expression, to the end of the transaction."""
    return f"crossfade.lock_name({literal(kind)}, {name})"


def lock_all(kind: str, column: str, table: str) -> str:
    """The same for all that the rows of a table have in a column, in their order."""
    names = f"select {column} from {table} where {column} is not null order by {column}"
    return f"crossfade.lock_names({literal(kind)}, array({names}))"


def share(kind: str, name: str) -> str:
    """The same, beside others who share it."""
    return f"crossfade.share_name({literal(kind)}, {name})"
