"""What a run of the system tests amounts to. Pure: outcomes in, verdict out."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

FLOOR = 252
"""Of client 2.34.1: with the marks off 259 can run, and 7 of those are for the types of the
Enterprise edition. Whoever moves to another client version counts again."""

LIFTED = ("PartitionQuery", "Internal Issue", "Require index")
"""Skip marks with one of these in their reason are taken off: they are about the official
emulator, or need documents that the plugin writes. Those about query profiles and pipelines
stay on."""

Kind = Literal["passed", "failed", "skipped"]


class ConformanceError(Exception):
    """The tests could not be run; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The counts, every failure with its reason, and what is held against the server.
    Without a fault the server conforms."""

    passed: int
    skipped: int
    failed: Mapping[str, str]
    excused: Mapping[str, str]
    faults: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report, a line each."""
        shown = [f"passed {self.passed}, failed {len(self.failed)}, skipped {self.skipped}"]
        for excuse in sorted(set(self.excused.values())):
            shown.append(f"may fail: {excuse}")
            shown += self._failures(n for n, reason in self.excused.items() if reason == excuse)
        if unexcused := self.failed.keys() - self.excused.keys():
            shown += ["may not fail:", *self._failures(unexcused)]
        return shown + [f"conformance: {fault}" for fault in self.faults]

    def _failures(self, names: Iterable[str]) -> list[str]:
        return [f"    {name}: {self.failed[name]}" for name in sorted(names)]


def read_exceptions(text: str) -> dict[str, str]:
    """Test name -> why it may fail, from [[exception]] tables of `reason` and `tests`.
    Raises ConformanceError for a name without a reason, or one that is there twice."""
    excused: dict[str, str] = {}
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConformanceError(f"the exceptions cannot be read: {error}") from None
    for entry in document.pop("exception", []):
        match entry:
            case {"reason": str(reason), "tests": [*names], **rest} if reason.strip() and not rest:
                for name in names:
                    if name in excused:
                        raise ConformanceError(f"{name} is excused twice")
                    excused[name] = reason
            case _:
                raise ConformanceError(f"an exception has a reason and tests, not {entry}")
    if document:
        raise ConformanceError(f"not an exception: {', '.join(document)}")
    return excused


def judge(
    outcomes: Mapping[str, Outcome], exceptions: Mapping[str, str], floor: int = FLOOR
) -> Verdict:
    failed = {name: o.reason for name, o in outcomes.items() if o.kind == "failed"}
    passed = {name for name, o in outcomes.items() if o.kind == "passed"}
    faults = []
    if unexcused := failed.keys() - exceptions.keys():
        faults.append(f"{len(unexcused)} failed that may not")
    for name in sorted(exceptions.keys() - failed.keys()):
        did = "passed" if name in passed else "did not run"
        faults.append(f"{name} {did}: it is no exception any more")
    if len(passed) < floor:
        faults.append(f"{len(passed)} passed; at least {floor} have to")
    return Verdict(
        passed=len(passed),
        skipped=sum(o.kind == "skipped" for o in outcomes.values()),
        failed=failed,
        excused={name: exceptions[name] for name in failed if name in exceptions},
        faults=tuple(faults),
    )
