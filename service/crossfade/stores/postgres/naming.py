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


def share(kind: str, name: str) -> str:
    """The same, beside others who share it."""
    return f"crossfade.share_name({literal(kind)}, {name})"
