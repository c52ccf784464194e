"""What is asked of the embedded Firestore, and whether it was seen."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from loadtests.bench.measure import Group, Ratio

GIBIBYTE = 1 << 30


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of a ratio of a group's. With `inverse` the ratio is of costs and the bound of
    what a core gets done."""

    what: str
    group: str
    case: str
    base: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    inverse: bool = False

    def judge(self, groups: Iterable[Group]) -> "Verdict | None":
        """None where it was not measured."""
        ratio = self._ratio(groups)
        if ratio is None:
            return None
        # What two identical cases differ by, the figure may be off either way.
        off = max(ratio.control, 1 / ratio.control)
        seen, low, high = (
            1 / value if self.inverse else value
            for value in (ratio.ratio, ratio.ratio * off, ratio.ratio / off)
        )
        met: bool | None = self._holds(seen)
        if self._holds(low) is not met or self._holds(high) is not met:
            met = None
        return Verdict(self.what, self._bound, seen, met, f"A/A x{ratio.control:.2f}")

    def _holds(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def _ratio(self, groups: Iterable[Group]) -> Ratio | None:
        wanted = (self.case, self.base, self.metric)
        for group in groups:
            for ratio in group.ratios() if group.name == self.group else ():
                if (ratio.case, ratio.base, ratio.metric) == wanted:
                    return ratio
        return None

    @property
    def _bound(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`met` None: the machine was too busy to say."""

    what: str
    bound: str
    seen: float
    met: bool | None
    control: str = ""

    @property
    def text(self) -> str:
        word = {True: "met", False: "MISSED", None: "not resolved"}[self.met]
        control = f" ({self.control})" if self.control else ""
        return f"{self.what}, {self.bound}: {self.seen:.2f}{control}: {word}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a number of small documents took: bytes and seconds."""

    documents: int
    before: int
    after: int
    seconds: float
    cpu: float

    @property
    def each(self) -> float:
        return (self.after - self.before) / self.documents

    def judge(self, most: float) -> Verdict:
        """Against a number of GiB."""
        size = self.after / GIBIBYTE
        what = f"{self.documents:,} small documents, GiB of resident memory"
        return Verdict(what, f"at most {most:g}", size, size <= most)

    @property
    def text(self) -> str:
        return (
            f"{self.documents:,} small documents: {self.before / 2**20:.0f} MiB before, "
            f"{self.after / 2**20:.0f} MiB after, {self.each:.0f} bytes each; loaded in "
            f"{self.seconds:.1f} s ({self.documents / self.seconds:,.0f}/s, "
            f"{self.cpu / self.documents * 1e6:.0f} µs of the server's CPU each)"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"each": self.each}
