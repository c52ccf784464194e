"""Locust users that call a sidecar as the violet proxy server does, and judge the answers.

Synchronous stubs on gevent, which grpc has to be told of before its first channel;
`grpc.aio` would block the whole process. No retries: a load test shows every error.
"""

import csv
import os
import random
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental.gevent
from locust import User, between, events, task
from locust.env import Environment
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV

from crossfade_api.v1 import crossfade_pb2_grpc as rpc
from crossfade_client import CrossfadeError, Query, RequestId, _requests, query
from crossfade_client.errors import NotFoundError, from_status
from violet.mix import Operation, Operations
from violet.sample import keys
from violet.traffic import Commit, Find, perform

grpc.experimental.gevent.init_gevent()

TASKS_VARIABLE = "CROSSFADE_LOAD_TASKS"
"""How many tasks the sample in the target was made with (seed 1)."""
OUTPUT_VARIABLE = "CROSSFADE_LOAD_OUTPUT"
"""Where statistics.csv and failures.csv go."""
TIMEOUT = 5.0


def write_csv(environment: Environment, **_: Any) -> None:
    """At the very end: Locust's own --csv writes every few seconds and misses the last."""
    tables = StatsCSV(environment, PERCENTILES_TO_REPORT)
    directory = Path(os.environ[OUTPUT_VARIABLE])
    for name, write in (
        ("statistics.csv", tables.requests_csv),
        ("failures.csv", tables.failures_csv),
    ):
        with (directory / name).open("w", newline="") as file:
            write(csv.writer(file))


events.quitting.add_listener(write_csv)  # type: ignore[no-untyped-call]


class WrongAnswer(Exception):
    """The call succeeded and its answer cannot be right."""


class ProxyServer(User):
    """One caller of the mix. The host is the sidecar's HOST:PORT."""

    wait_time = between(0.0, 0.02)

    def on_start(self) -> None:
        self._channel = grpc.insecure_channel(self.host or "", _requests.CHANNEL_OPTIONS)
        self._stub = rpc.CrossfadeStub(self._channel)
        known = keys(1, int(os.environ[TASKS_VARIABLE]))
        self._operations = Operations(random.Random(), known)

    def on_stop(self) -> None:
        for operation in self._operations.clear():
            self._run(operation)
        self._channel.close()

    @task
    def call(self) -> None:
        self._run(next(self._operations))

    def _run(self, operation: Operation) -> None:
        begun = time.perf_counter()
        failure: Exception | None = None
        try:
            problems = self._perform(operation)
            if problems:
                failure = WrongAnswer(problems[0])
        except CrossfadeError as error:
            failure = error
        if failure is not None:
            self._operations.forget(operation)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=type(operation).__name__,
            response_time=(time.perf_counter() - begun) * 1_000,
            response_length=0,
            exception=failure,
            context={},
        )

    def _perform(self, operation: Operation) -> list[str]:
        performance = perform(operation)
        answer: Any = None
        while True:
            try:
                step = performance.send(answer)
            except StopIteration as end:
                problems: list[str] = end.value
                return problems
            try:
                answer = self._answer(step)
            except grpc.RpcError as error:
                raise from_status(
                    error.code(), error.details() or "", commit=isinstance(step, Commit)
                ) from error

    def _answer(self, step: Find | Query | Commit) -> Any:
        if isinstance(step, Find):
            try:
                reply = self._stub.GetDocument(_requests.get_request(step.path), timeout=TIMEOUT)
            except grpc.RpcError as error:
                if error.code() is NotFoundError.code:
                    return None
                raise
            return _requests.get_result(reply)
        if isinstance(step, Query):
            replies = self._stub.Query(query.request(step), timeout=TIMEOUT)
            return [found for reply in replies for found in _requests.query_result(reply)]
        request = _requests.commit_request([step.write], RequestId.GENERATE)
        return _requests.commit_result(self._stub.Commit(request, timeout=TIMEOUT), request)
