"""Writes collected one by one. No I/O: the clients' batches add how they are committed."""

from datetime import datetime
from typing import Self

from crossfade_client.values import Changes, Fields
from crossfade_client.writes import Write


class Collected:
    """Each method adds a write (see `Write`) and returns the batch."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    def __len__(self) -> int:
        return len(self._writes)

    def set(self, path: str, fields: Fields, *, update_time: datetime | None = None) -> Self:
        return self.add(Write.set(path, fields, update_time=update_time))

    def create(self, path: str, fields: Fields) -> Self:
        return self.add(Write.create(path, fields))

    def merge(
        self,
        path: str,
        fields: Fields,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
    ) -> Self:
        return self.add(Write.merge(path, fields, exists=exists, update_time=update_time))

    def update(self, path: str, fields: Changes, *, update_time: datetime | None = None) -> Self:
        return self.add(Write.update(path, fields, update_time=update_time))

    def delete(
        self, path: str, *, exists: bool | None = None, update_time: datetime | None = None
    ) -> Self:
        return self.add(Write.delete(path, exists=exists, update_time=update_time))

    def add(self, write: Write) -> Self:
        self._writes.append(write)
        return self
