"""Mechanisms of the protocol, each switched off in the sidecars' processes, and the test
that must fail then. A mechanism whose absence no test notices is not proved to be needed.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

TEST_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Mutation:
    """`law`: what is promised; `test`: the test of `test_faults.py` that finds it broken."""

    law: str
    test: str
    switch_off: Callable[[], None]


MUTATIONS: dict[str, Mutation] = {}


def run_all() -> bool:
    """Tries all; whether one of them was not noticed."""
    unnoticed = []
    for name, mutation in MUTATIONS.items():
        noticed = run(name, mutation)
        print(f"without {name}: {mutation.test} {'fails' if noticed else 'PASSES'}", flush=True)
        if not noticed:
            unnoticed.append(name)
    return bool(unnoticed)


def run(name: str, mutation: Mutation) -> bool:
    """Whether the test fails when the mechanism is switched off."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            f"tests/fault/test_faults.py::{mutation.test}",
        ],
        env={**os.environ, "FAULT_MUTATION": name},
        capture_output=True,
        check=False,
        timeout=TEST_SECONDS,
    )
    return ended.returncode == 1
