"""Mechanisms of the protocol, each to be switched off in a sidecar's process, and the test
that must fail then. What no test misses is not proved to be needed."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """`law`: what is promised; `test`: a test of `test_faults.py` that finds it broken."""

    law: str
    test: str
    switch_off: Callable[[], None]


MUTATIONS: dict[str, Mutation] = {}
