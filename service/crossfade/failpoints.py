"""Named places in the protocol where a test may end or stop the process.

A crash at any step must lose nothing; so that "any" can be tried, each step has a
name. Without CROSSFADE_FAIL_POINT in the environment reaching one costs a look at None.
"""

import os
import signal
from dataclasses import dataclass

VARIABLE = "CROSSFADE_FAIL_POINT"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True)
class _Armed:
    name: str
    signal: signal.Signals
    left: int


def _parse(text: str) -> _Armed | None:
    """`NAME:ACTION:N`: at the Nth time that NAME is reached, ACTION (kill or stop)."""
    if not text:
        return None
    name, action, number = text.split(":")
    return _Armed(name, SIGNALS[action], int(number))


_armed: _Armed | None = None


def arm() -> None:
    """As the environment says, which a process that was forked may have of its own."""
    global _armed  # noqa: PLW0603 - one of a process
    _armed = _parse(os.environ.get(VARIABLE, ""))


arm()


def reach(name: str) -> None:
    """Does to this process what the environment asks for at this place, if anything."""
    if _armed is not None and _armed.name == name:
        _armed.left -= 1
        if not _armed.left:
            os.kill(os.getpid(), _armed.signal)
