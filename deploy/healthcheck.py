# ruff: noqa: INP001 - a script of the image, of no package
"""Asks the sidecar in this container whether it serves; exit code 0 or 1."""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main() -> int:
    socket = os.environ.get("CROSSFADE_SERVER__SOCKET")
    port = os.environ.get("CROSSFADE_SERVER__PORT") or "7600"
    with grpc.insecure_channel(f"unix:{socket}" if socket else f"127.0.0.1:{port}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=2
            )
        except grpc.RpcError:
            return 1
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
