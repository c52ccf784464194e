"""Whether PostgreSQL takes pending rows at its usual pace. Decides only; no I/O, no clock.

Pending rows come before the commit, so a mirror that is slow, and not away, adds its slowness
to every commit. It counts as slow when a commit takes half as long again as it usually does,
and for no other reason than its rows. What is usual is learned only while rows are waited for,
downwards quickly and upwards slowly: a mirror that becomes slow stays slow by comparison,
however long it is. A sidecar that starts beside a slow mirror knows no better pace.
"""

import statistics
from collections import deque
from math import exp

SLOW, AGAIN = 1.5, 1.2
"""A commit with its rows against the usual one: from here it is slow, and from here not again."""
LEAST_SLOW, LEAST_AGAIN = 0.02, 0.01
"""Seconds: more than this must be lost, too; below it a busy machine's own noise would decide."""
OPENINGS = 15
"""So many are looked at together: half of them have to be slow."""
PROBES, APART_SECONDS = 4, 0.4
"""So many in a row have to be quick before rows are waited for again; those that are nearer
together count as one, the slowest."""
FALL_SECONDS, RISE_SECONDS = 30.0, 600.0
"""In which what is usual follows what is seen, downwards and upwards."""
MOST_STEP_SECONDS = 10.0
"""One opening after a quiet night says no more than one after ten seconds."""
FIRST_REST, MOST_REST, WELL_SECONDS = 5.0, 60.0, 300.0
"""Seconds between the end of slowness and the next: each time the double, up to the most, until
it was well for some minutes. So however often the mirror changes its mind, the gate is not
closed and opened more often."""


class Pace:
    """Fed with seconds that things took; `now` is of any clock that only rises, in seconds."""

    def __init__(self) -> None:
        self._openings: deque[float] = deque(maxlen=OPENINGS)
        self._commits: deque[float] = deque(maxlen=OPENINGS)
        self._probes: deque[float] = deque(maxlen=PROBES)
        self._probed = 0.0
        self._usual: float | None = None
        self._learned = 0.0
        self._rest = FIRST_REST
        self._rests_until = -WELL_SECONDS
        self._began = 0.0
        """When it became slow last."""
        self.slow = False

    @property
    def usual(self) -> float:
        """Seconds that rows usually take; 0 while too few were seen."""
        return self._usual or 0.0

    @property
    def lately(self) -> float:
        """Seconds that rows took lately."""
        seen = self._probes or self._openings
        return statistics.median(seen) if seen else 0.0

    def committed(self, seconds: float) -> None:
        """Firestore answered a commit, whichever way its paths became known."""
        self._commits.append(seconds)

    def opened(self, seconds: float, now: float) -> None:
        """PostgreSQL took the rows of a commit."""
        if self.slow:
            return  # those that were begun before, and probes say more
        self._openings.append(seconds)
        if len(self._openings) < OPENINGS or len(self._commits) < OPENINGS:
            return
        lately = statistics.median(self._openings)
        if self._usual is None:
            self._usual, self._learned = lately, now
        if not self._costs(lately, SLOW, LEAST_SLOW):
            self._learn(lately, now)
        elif now >= self._rests_until:
            self.slow, self._began = True, now

    def probed(self, seconds: float, now: float) -> None:
        """PostgreSQL answered a probe, or took rows for which nobody waited."""
        if not self.slow:
            return
        if self._probes and now - self._probed < APART_SECONDS:
            self._probes[-1] = max(self._probes[-1], seconds)
            return
        self._probes.append(seconds)
        self._probed = now
        worst = max(self._probes)
        if len(self._probes) == PROBES and not self._costs(worst, AGAIN, LEAST_AGAIN):
            self.slow = False
            well = self._began - self._rests_until > WELL_SECONDS
            self._rest = FIRST_REST if well else min(2 * self._rest, MOST_REST)
            self._rests_until = now + self._rest
            self._openings.clear()
            self._probes.clear()

    def _lost(self, seconds: float) -> float:
        return seconds - self.usual

    def _costs(self, seconds: float, ratio: float, least: float) -> bool:
        """Whether a commit whose rows take so long takes so many times what it usually does,
        and so many seconds more."""
        commit = statistics.median(self._commits)
        return self._lost(seconds) > least and commit + seconds > ratio * (commit + self.usual)

    def _learn(self, lately: float, now: float) -> None:
        passed = min(now - self._learned, MOST_STEP_SECONDS)
        constant = RISE_SECONDS if self._lost(lately) > 0 else FALL_SECONDS
        self._usual = self.usual + self._lost(lately) * (1 - exp(-passed / constant))
        self._learned = now
