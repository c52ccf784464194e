"""Processes that give way to all others, because elsewhere they have a machine of their own."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

LOWEST = 19
ATTEMPTS = 20
AGAIN_SECONDS = 0.11
"""Linux lets everybody but root change one group in a tenth of a second."""


def give_way(pids: Sequence[int]) -> None:
    """All threads of the processes, at the lowest priority. One that is gone is no error.

    Where Linux shares the CPU between sessions first (autogroups), a nice value decides within
    one session only, and the session's own counts among the others; each of PostgreSQL's
    backends is a session.
    """
    for pid in pids:
        for thread in _threads(pid):
            try:
                os.setpriority(os.PRIO_PROCESS, thread, LOWEST)
            except ProcessLookupError:
                continue
        _lower_session(Path(f"/proc/{pid}/autogroup"))


def _threads(pid: int) -> list[int]:
    try:
        return [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:  # gone, or not Linux
        return [pid]


def _lower_session(autogroup: Path) -> None:
    for _ in range(ATTEMPTS):
        try:
            # "/autogroup-123 nice 0"; empty for a process that is ending.
            if autogroup.read_text().split()[-1:] not in ([], [str(LOWEST)]):
                autogroup.write_text(str(LOWEST))
        except BlockingIOError:
            time.sleep(AGAIN_SECONDS)
        except (FileNotFoundError, ProcessLookupError):
            return
        else:
            return
    raise TimeoutError(f"{autogroup} could not be set in {ATTEMPTS * AGAIN_SECONDS:.0f} s")
