"""One server for each file of aimed tests."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest_asyncio

from tests.fuzz.server import Watched, watched


@pytest_asyncio.fixture(scope="module")
async def server(tmp_path_factory: Any) -> AsyncIterator[Watched]:
    with watched(tmp_path_factory.mktemp("server")) as made:
        await made.prepare()
        yield made


@pytest_asyncio.fixture(scope="module")
async def channel(server: Watched) -> AsyncIterator[grpc.aio.Channel]:
    async with server.channel() as channel:
        yield channel
