"""One subscription for all Listen streams on a database.

Every commit is looked up by the ids of its collections, so that targets elsewhere cost it
nothing, however many there are.
"""

import asyncio
from collections.abc import Callable, Sequence

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
        changed: dict[str, list[str]] = {}
        for path in paths:
            changed.setdefault(collection_path(path), []).append(path)
        for collection, inside in changed.items():
            for key in (collection.rpartition("/")[2], None):
                for target, wake in self._followers.get(key, {}).items():
                    if target.touch(inside):
                        wake.set()
