"""The day's budget of billed reads, for tests: kept in memory."""

from collections import Counter
from datetime import date


class Days:
    """Gives away so much of each day's budget. `given`, by day."""

    def __init__(self) -> None:
        self.given: Counter[date] = Counter()

    async def reserve(self, day: date, reads: int, daily: int) -> tuple[int, int]:
        got = min(reads, daily - self.given[day])
        self.given[day] += got
        return got, self.given[day]
