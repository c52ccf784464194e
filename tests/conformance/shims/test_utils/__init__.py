"""The system tests import two names from a package that is not on the index."""
