"""What the latest validations found, and which of them the next change of stage goes by."""

from collections.abc import Sequence
from dataclasses import dataclass

from crossfade.checks.certificate import Standard, outdated
from crossfade.controls import Controls
from crossfade.stores.postgres.findings import Certificate, Findings, Summary

WORDS = {
    "quick": "compares by version alone",
    "since": "compares only what was written lately",
}
"""What a mode does not show."""


@dataclass(frozen=True, slots=True)
class Certified:
    """`why_not`: why it is no certificate; empty: it is the one that the check asks for."""

    summary: Summary
    why_not: str


class Validations:
    """`fingerprint`: of the tables of this sidecar's mapping; `age`: for how many seconds a
    validation counts."""

    def __init__(
        self, findings: Findings, controls: Controls, fingerprint: str, age: float
    ) -> None:
        self._findings = findings
        self._controls = controls
        self._fingerprint = fingerprint
        self._age = age

    async def latest(self, group: str | None, limit: int) -> Sequence[Certified]:
        """Of a group, or of all. Raises CrossfadeError."""
        found = await self._findings.summaries(group, limit)
        counting = {}
        for name in {each.group for each in found}:
            latest = await self._findings.latest(name)
            counting[name] = None if latest is None else latest.job
        return [Certified(each, self._why_not(each, counting[each.group])) for each in found]

    def _why_not(self, found: Summary, latest: int | None) -> str:
        control = self._controls.get(found.group)
        if control is None:
            return "is of a group that the settings do not have any more"
        snapshot = control.snapshot
        standard = Standard(snapshot.epoch, snapshot.generation, self._fingerprint, self._age)
        return why_not(found.certificate, latest, standard)


def why_not(found: Certificate, latest: int | None, standard: Standard) -> str:
    """Why a validation is no certificate; empty: it is. `latest`: the job of the latest one of
    everything by content. Pure."""
    if found.mode in WORDS:
        return WORDS[found.mode]
    if found.collections:
        return "compares some collections only"
    if found.job != latest:
        return f"is followed by validation {latest}"
    if reason := outdated(found, standard):
        return reason
    return "" if found.equal else "found differences"
