"""Fixtures that every test may ask for."""

pytest_plugins = ["tests.firestore_fixture", "tests.postgres_fixture"]
