"""Who is in charge of each group, where something is asked of a collection, or of all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from crossfade.control import Control
from crossfade.groups import DEFAULT, Groups
from crossfade.snapshot import Snapshot, Traffic


class Controls(Mapping[str, Control]):
    """The controls by the names of their groups."""

    def __init__(self, groups: Groups, controls: Mapping[str, Control]) -> None:
        self._groups = groups
        self._controls = dict(controls)

    def __getitem__(self, group: str) -> Control:
        return self._controls[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._controls)

    def __len__(self) -> int:
        return len(self._controls)

    @property
    def default(self) -> Control:
        return self._controls[DEFAULT]

    @property
    def snapshot(self) -> Snapshot:
        """The default group's."""
        return self.default.snapshot

    def of(self, collection: str) -> Control:
        """That of a collection; of "", which stands for the defaults, the default group's."""
        return self._controls[self._groups.of(collection)] if collection else self.default

    def snapshot_of(self, collection: str) -> Snapshot:
        return self.of(collection).snapshot

    def traffic(self) -> set[str]:
        """The collections that have a setting of their own, and "" for the defaults."""
        return {
            name
            for control in self._controls.values()
            for name in control.snapshot.traffic
            if not name or self.of(name) is control
        } | {""}

    async def admit(self, names: Iterable[str], left: Callable[[], float]) -> dict[str, Snapshot]:
        """Snapshots of groups whose authorities may all be asked now: the lease of one may be
        over before that of another is renewed."""
        while True:
            found = {name: await self._controls[name].admit(left) for name in names}
            if all(self._controls[name].admitted(snapshot) for name, snapshot in found.items()):
                return found

    async def set_traffic(
        self, collection: str, traffic: Traffic, *, group: str = "", reset: bool = False
    ) -> None:
        """Sets what is not None, and forgets with `reset` what was set before: of a collection,
        or (of "") the defaults of a group, or of all."""
        if collection:
            chosen = [self.of(collection)]
        else:
            chosen = [self._controls[group]] if group else list(self._controls.values())
        for control in chosen:
            await control.set_traffic(collection, traffic, reset=reset)

    async def configure(self, configured: Mapping[str, Traffic]) -> None:
        """The traffic of the settings, from now on, in every group."""
        for control in self._controls.values():
            await control.configure(configured)

    async def check_ready(self) -> None:
        """Raises InfrastructureError where a store that is in charge of a group cannot be asked
        now."""
        for control in self._controls.values():
            await control.check_ready()
