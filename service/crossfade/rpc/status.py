"""Errors as gRPC statuses, on the way out. The one table."""

import grpc

from crossfade.errors import CrossfadeError

_CODES = {code.name: code for code in grpc.StatusCode}


def code_of(error: CrossfadeError) -> grpc.StatusCode:
    """Every error class names its status; the subclass's own name wins."""
    return _CODES[error.code]
