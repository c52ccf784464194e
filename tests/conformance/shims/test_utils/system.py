"""Credentials for an emulator, and ids that no other run has used."""

import os
import time

from google.auth.credentials import AnonymousCredentials as EmulatorCreds

__all__ = ["EmulatorCreds", "unique_resource_id"]


def unique_resource_id(delimiter: str = "_") -> str:
    return f"{delimiter}{os.getpid()}{delimiter}{time.time_ns()}"
