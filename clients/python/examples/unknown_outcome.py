"""A commit whose answer was lost is sent again with its request_id, and done once.

CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
"""

import os
from uuid import uuid4

from crossfade_client import (
    Crossfade,
    DeadlineExceededError,
    Increment,
    OutcomeUnknownError,
    UnavailableError,
    Write,
)

TARGET = os.environ.get("CROSSFADE_TARGET", "127.0.0.1:7600")


def pay(crossfade: Crossfade, account: str, request_id: str, timeout: float) -> str:
    """The id belongs to the payment, not to the attempt: whoever asks again asks with it."""
    write = Write.merge(account, {"paid": Increment(5)})
    try:
        done = crossfade.commit([write], request_id=request_id, timeout=timeout)
    except (OutcomeUnknownError, UnavailableError, DeadlineExceededError):
        return "nobody knows"
    return "had been done" if done.replayed else "done"


def main() -> None:
    account = f"accounts/example-{uuid4()}"
    payment = str(uuid4())
    with Crossfade(TARGET) as crossfade:
        # So short that the answer comes too late, whether or not the commit was done.
        print("first:", pay(crossfade, account, payment, timeout=0.001))
        again = {pay(crossfade, account, payment, timeout=10.0) for _ in range(3)}
        print("settled:", "had been done" in again)
        print("paid:", crossfade.get(account).fields["paid"])
        crossfade.delete(account)


main()
