"""Fixtures that every test may ask for."""

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# Before gRPC is loaded: its fork handlers crash children that are forked from a process
# with channels open, and starting PostgreSQL forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

# How long an example takes says how busy the machine is.
settings.register_profile("crossfade", deadline=None)
settings.load_profile("crossfade")

pytest_plugins = ["tests.firestore_fixture", "tests.postgres_fixture"]


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Commands set up logging for their process; the next test must not inherit it."""
    yield
    structlog.reset_defaults()
