"""Fixtures that every test may ask for."""

from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["tests.firestore_fixture", "tests.postgres_fixture"]


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Commands set up logging for their process; the next test must not inherit it."""
    yield
    structlog.reset_defaults()
