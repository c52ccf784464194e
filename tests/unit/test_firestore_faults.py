import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crossfade.errors import CrossfadeError, NotFound
from crossfade.rpc.firestore_v1.faults import Failure, Faults, Latency, parse


class Method:
    """Counts what it was asked for."""

    def __init__(self, frames: int = 2) -> None:
        self.done = 0
        self.closed = 0
        self._frames = frames

    async def unary(self, data: bytes, left: float) -> bytes:
        self.done += 1
        return data * int(left)

    async def refusing(self, data: bytes, left: float) -> bytes:
        self.done += 1
        raise NotFound("not there")

    async def streaming(self, data: bytes, left: float) -> AsyncIterator[bytes]:
        self.done += 1
        try:
            for number in range(self._frames):
                yield data + b"%d" % number
        finally:
            self.closed += 1


async def fate(call) -> str:
    """The code with which a call ends, and where."""
    try:
        if isinstance(call, AsyncIterator):
            async for _ in call:
                pass
        else:
            await call
    except CrossfadeError as error:
        return f"{error.code} {'there' if 'way there' in str(error) else 'back'}"
    return "OK"


# --- words -------------------------------------------------------------------------------------


def test_nothing_asked_for_is_nothing_at_all():
    assert parse(None, (), None) is None
    assert parse(None, (), 7) is None
    assert parse("0,0", (), None) is not None


@pytest.mark.parametrize(
    "text", ["20", "20,", ",5", "20,5,1", "-1,5", "20,-5", "nan,1", "inf,1", "a,b", ""]
)
def test_a_latency_is_two_numbers(text):
    with pytest.raises(ValueError, match=r"--latency: .* is not MEAN,JITTER in milliseconds"):
        parse(text, (), None)


@pytest.mark.parametrize(
    "text", ["0.1", ":UNAVAILABLE", "2:UNAVAILABLE", "-0.1:ABORTED", "nan:ABORTED", "1:"]
)
def test_a_failure_is_a_rate_and_a_code(text):
    with pytest.raises(ValueError, match=r"--fail: .* is not RATE:CODE"):
        parse(None, [text], None)


@pytest.mark.parametrize("code", ["OK", "UNAVAILABL", "unavailable", "14"])
def test_a_code_is_the_name_of_a_status(code):
    with pytest.raises(ValueError, match=r'--fail: ".*" is not the name of a gRPC status'):
        parse(None, [f"0.1:{code}"], None)


def test_not_more_calls_can_fail_than_there_are():
    with pytest.raises(ValueError, match="more than 1"):
        parse(None, ["0.6:ABORTED", "0.5:UNAVAILABLE"], None)
    assert parse(None, ["0.7:ABORTED", "0.1:INTERNAL", "0.2:UNAVAILABLE"], None)


# --- failures ----------------------------------------------------------------------------------


async def test_half_of_the_failures_come_before_the_call_is_done_and_half_after():
    faults = Faults(None, [Failure(0.3, "UNAVAILABLE"), Failure(0.2, "ABORTED")], seed=1)
    for kind in ("unary", "streaming"):
        method = Method()
        call = getattr(faults, kind)(getattr(method, kind))
        fates = [await fate(call(b"x", 1.0)) for _ in range(4_000)]
        shares = {name: fates.count(name) / len(fates) for name in set(fates)}
        assert shares == pytest.approx(
            {
                "OK": 0.5,
                "UNAVAILABLE there": 0.15,
                "UNAVAILABLE back": 0.15,
                "ABORTED there": 0.1,
                "ABORTED back": 0.1,
            },
            abs=0.03,
        )
        assert method.done == sum(not name.endswith("there") for name in fates)
        assert method.closed == (method.done if kind == "streaming" else 0)


async def test_the_same_seed_is_the_same_fate_whatever_the_latency():
    async def fates(latency: Latency | None, seed: int | None) -> list[str]:
        faults = Faults(latency, [Failure(0.5, "ABORTED")], seed)
        call = faults.unary(Method().unary)
        return [await fate(call(b"x", 1.0)) for _ in range(64)]

    first = await fates(None, 1)
    assert await fates(None, 1) == first
    assert await fates(Latency(0.01, 0.01), 1) == first
    assert await fates(None, 2) != first
    assert await fates(None, None) != await fates(None, None)


@pytest.mark.parametrize("rate", [0, 1])
async def test_never_and_always(rate):
    faults = Faults(None, [Failure(rate, "DATA_LOSS")])
    call = faults.unary(Method().unary)
    fates = {await fate(call(b"x", 1.0)) for _ in range(100)}
    assert fates == ({"DATA_LOSS there", "DATA_LOSS back"} if rate else {"OK"})


async def test_answers_and_errors_pass_through():
    faults = Faults(Latency(1, 0), [Failure(0, "ABORTED")])
    method = Method()
    assert await faults.unary(method.unary)(b"ab", 2.0) == b"abab"
    stream = faults.streaming(method.streaming)
    assert [frame async for frame in stream(b"f", 1.0)] == [b"f0", b"f1"]
    assert [frame async for frame in faults.streaming(Method(0).streaming)(b"f", 1.0)] == []
    with pytest.raises(NotFound):
        await faults.unary(method.refusing)(b"", 1.0)


async def test_a_reader_who_goes_away_ends_the_method_too():
    method = Method(100)
    frames: Any = Faults(Latency(0, 0), []).streaming(method.streaming)(b"f", 1.0)
    assert await anext(frames) == b"f0"
    await frames.aclose()
    assert method.closed == 1


# --- latency -----------------------------------------------------------------------------------


async def test_a_call_takes_its_latency_half_before_and_half_after():
    done: list[float] = []

    async def method() -> bytes:
        done.append(time.monotonic())
        return b""

    async def frames() -> AsyncIterator[bytes]:
        done.append(time.monotonic())
        for _ in range(50):
            yield b""

    faults = Faults(Latency(80, 0), [])
    for call in (faults.unary(method)(), anext(faults.streaming(frames)())):
        started = time.monotonic()
        await call
        there, back = done[-1] - started, time.monotonic() - done[-1]
        assert there == pytest.approx(0.04, abs=0.025)
        assert there + back == pytest.approx(0.08, abs=0.03)
    started = time.monotonic()
    assert len([frame async for frame in faults.streaming(frames)()]) == 50
    assert time.monotonic() - started < 0.4  # not once for every frame


async def test_an_error_travels_as_long_as_an_answer():
    method = Method()
    started = time.monotonic()
    with pytest.raises(NotFound):
        await Faults(Latency(50, 0), []).unary(method.refusing)(b"", 1.0)
    assert time.monotonic() - started > 0.045


async def test_latencies_are_normally_distributed_and_never_negative():
    trips = Faults(Latency(20, 5), [], seed=1)
    seconds = [trips._trip()._seconds for _ in range(2_000)]
    mean = sum(seconds) / len(seconds)
    assert mean == pytest.approx(0.020, abs=0.001)
    spread = (sum((one - mean) ** 2 for one in seconds) / len(seconds)) ** 0.5
    assert spread == pytest.approx(0.005, abs=0.0005)
    wide = Faults(Latency(1, 100), [], seed=1)
    assert min(wide._trip()._seconds for _ in range(100)) == 0


async def test_a_caller_who_gives_up_on_the_way_there_has_done_nothing():
    method = Method()
    call = Faults(Latency(10_000, 0), []).unary(method.unary)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call(b"x", 1.0), 0.02)
    assert method.done == 0
