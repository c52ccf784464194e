"""The system tests import the package of this name, for what the standard library has."""

from unittest.mock import Mock

__all__ = ["Mock"]
