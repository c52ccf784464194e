"""One subscription for all Listen streams on a database.

Every commit is looked up by the ids of its collections, so that targets elsewhere cost it
nothing, however many there are.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from crossfade.document import collection_path
from crossfade.rpc.firestore_v1.backend import Backend
from crossfade.rpc.firestore_v1.listen_targets import Target


class Watch:
    """Marks the targets that a commit may have changed, and wakes their streams.

    The backend is subscribed to while there are targets.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._followers: dict[str | None, dict[Target, asyncio.Event]] = {}
        self._unsubscribe: Callable[[], None] | None = None

    def add(self, target: Target, wake: asyncio.Event) -> None:
        for collection in target.collections:
            self._followers.setdefault(collection, {})[target] = wake
        if self._followers and self._unsubscribe is None:
            self._unsubscribe = self._backend.subscribe(self._committed)

    def remove(self, target: Target) -> None:
        for collection in target.collections:
            followers = self._followers[collection]
            del followers[target]
            if not followers:
                del self._followers[collection]
        if not self._followers and self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _committed(self, _: int, paths: Sequence[str]) -> None:
        for collection, inside in _by_collection(paths).items():
            for key in (collection.rpartition("/")[2], None):
                for target, wake in self._followers.get(key, {}).items():
                    if target.touch(inside):
                        wake.set()


def touch(targets: Iterable[Target], paths: Sequence[str]) -> bool:
    """Marks those of the targets that these changed documents concern. Whether there are any."""
    changed = _by_collection(paths)
    touched = False
    for target in targets:
        for collection, inside in changed.items():
            if not target.collections or {None, collection.rpartition("/")[2]}.isdisjoint(
                target.collections
            ):
                continue
            touched |= target.touch(inside)
    return touched


def _by_collection(paths: Sequence[str]) -> dict[str, list[str]]:
    changed: dict[str, list[str]] = {}
    for path in paths:
        changed.setdefault(collection_path(path), []).append(path)
    return changed
