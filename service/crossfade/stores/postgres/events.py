"""The row events at which values are moved, collected by table before triggers are made of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import Table


@dataclass
class Event:
    """One trigger of a table: when it fires, and what it does then."""

    conditions: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)

    def add(self, condition: str, action: str) -> None:
        self.conditions.append(condition)
        self.actions.append(f"if {condition} then\n{action}\nend if;")


On: TypeAlias = Callable[[Table, str], Event]

EVENTS = {
    "place": ("before", "insert", "new"),
    "keep": ("before", "update", "new"),
    "part": ("before", "delete", "old"),
    "arrive": ("after", "insert", "new"),
    "change": ("after", "update", "new"),
    "leave": ("after", "delete", "old"),
}
