"""Where a job's ranges are cut, by a server that can say so and by one that cannot."""

from typing import Any

import grpc
import pytest

from crossfade.jobs import planning
from crossfade.jobs.planning import plan_firestore
from crossfade.stores.firestore import INTENTS, connect
from crossfade.write import Write
from tests.fault import rpc_proxy
from tests.fault.rpc_proxy import SERVICE, RpcProxy
from tests.firestore_fixture import fresh_database
from violet.mapping import MAPPINGS

PARTITION = "PartitionQuery"
TWO_A_PAGE = b"\x28\x02"
"""The field page_size of the request, which is ours to leave out and the server's to mind."""


class Paging(RpcProxy):
    """Firestore with pages of two points each."""

    def _unary(self, name: str) -> Any:
        if name != PARTITION:
            return super()._unary(name)
        call: Any = self._channel.unary_unary(SERVICE + name)

        async def handle(request: bytes, _: Any) -> bytes:
            self.calls[name] += 1
            answer: bytes = await call(request + TWO_A_PAGE, timeout=30)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture(params=[True, False], ids=["PartitionQuery", "without it"])
def asks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the server has the method; without, it answers UNIMPLEMENTED as others do."""
    monkeypatch.setattr(planning, "LEAST_PART", 40)
    if request.param:
        monkeypatch.setattr(rpc_proxy, "UNARY", rpc_proxy.UNARY | {PARTITION})
    return bool(request.param)


async def test_a_collection_is_cut_evenly_with_or_without_the_servers_help(
    embedded_firestore, asks
):
    database = fresh_database()
    direct = connect(database, embedded_firestore)
    paths = [f"tasks/{number * 7919 % 4001:06}" for number in range(400)]
    paths += [f"{path}/audio_chunks/{number}" for path in paths[:50] for number in range(2)]
    paths += ["notes/1", "users/1"]
    for start in range(0, len(paths), 200):
        writes = [Write(path, {"n": 1}) for path in paths[start : start + 200]]
        await direct.commit(writes, timeout=30)
    async with Paging(embedded_firestore) as proxy:
        firestore = connect(database, proxy.address)
        ranges, total = await plan_firestore(firestore, MAPPINGS, parts=8, small=0, timeout=30)
        await firestore.close()
    await direct.close()
    held = [
        [path for path in paths if each.holds(path)]
        for _, each in ranges
        if each.collection != INTENTS
    ]
    assert total == len(paths)
    assert sorted(path for each in held for path in each) == sorted(paths), "each exactly once"
    assert sum(1 for _, each in ranges if each.collection == "tasks") >= 6
    assert max(map(len, held)) <= len(paths) / 2, "no part is as large as all the others"
    if asks:
        assert proxy.calls[PARTITION] >= 4, "page by page"
    else:
        assert 0 < proxy.calls["RunQuery"] <= 3 * planning.PROBES
