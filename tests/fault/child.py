"""`python -m tests.fault.child serve ...`: the command in a process of its own, with the
waiting times of a test and, for one test, one mechanism of the protocol switched off.

FAULT_LEASE: seconds that a writer's pending rows are left to it (15 in production, which
every kill would have to wait for). FAULT_COORDINATOR: seconds after which a silent
coordinator of a barrier is taken for dead (5). FAULT_CLAIM: seconds after which the parts of a
job that a dead process held are anybody's (10). FAULT_SETTLE: seconds after a ramp's move before
reads count (6). FAULT_MUTATION: a name of `mutations.py`.
"""

import os
import sys

from crossfade import barrier, cli, failpoints, pending
from crossfade.jobs import work
from crossfade.rpc import ramps


def main() -> int:
    """The command of `sys.argv`, under the environment as it is now."""
    failpoints.arm()
    pending.LEASE_SECONDS = float(os.environ.get("FAULT_LEASE", pending.LEASE_SECONDS))
    barrier.COORDINATOR_SECONDS = float(
        os.environ.get("FAULT_COORDINATOR", barrier.COORDINATOR_SECONDS)
    )
    work.CLAIM_SECONDS = float(os.environ.get("FAULT_CLAIM", work.CLAIM_SECONDS))
    ramps.SETTLE_SECONDS = float(os.environ.get("FAULT_SETTLE", ramps.SETTLE_SECONDS))
    if mutation := os.environ.get("FAULT_MUTATION"):
        from tests.fault.mutations import MUTATIONS

        MUTATIONS[mutation].switch_off()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
