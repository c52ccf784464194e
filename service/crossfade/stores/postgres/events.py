"""The events at which values are moved, collected by table before triggers are made of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import Table


@dataclass
class Event:
    """One trigger of a table: when it fires, and what it does then. `names`: what it locks
    before, all of it in one order: kinds, and the columns that the names are in."""

    conditions: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    names: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, condition: str, action: str) -> None:
        """What is done for a row that meets the condition."""
        self.conditions.append(condition)
        self.actions.append(f"if {condition} then\n{action}\nend if;")

    def add_for_all(self, kind: str, column: str, action: str) -> None:
        """What is done once for all rows of a statement, in FRESH, when these names of theirs
        are locked."""
        self.names[kind, column] = None
        self.actions.append(action)


On: TypeAlias = Callable[[Table, str], Event]

FRESH = "fresh"
"""What `arrive` has the rows in that a statement inserted: names are locked once, and each table
that refers to them is asked once, however many the rows are."""
EVENTS = {
    "place": ("before", "insert", "new"),
    "keep": ("before", "update", "new"),
    "part": ("before", "delete", "old"),
    "arrive": ("after", "insert", "null"),
    "change": ("after", "update", "new"),
    "leave": ("after", "delete", "old"),
}
