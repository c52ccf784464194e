"""Rehearsals of a whole ramp under reads: `python -m loadtests.ramp`.

Real processes: a sidecar, PostgreSQL, Firestore's official emulator where it is installed.
Callers read documents that others keep writing, every read is compared, and a ramp moves
the reads to PostgreSQL. On the way something goes wrong with the mirror, once: its rows are
spoilt by hand, or its reads fail, or they are slow. The ramp has to take the reads back by
itself, and to go on when it is over. Rows are mended by read-repair; fails and slowness end
when the ramp has gone back. There is a ramp for each of the three.

Every answer is judged: a document may never be older than what was acknowledged before the
read began. Exit codes: 0 each ramp went back because of what went wrong and came to its end, and
every answer was right, but for those of spoilt rows before it had reacted; 1 otherwise.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio

from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade, CrossfadeError, Snapshot, Write
from loadtests.bench import servers
from loadtests.bench.__main__ import to_stage
from loadtests.bench.measure import BenchError
from loadtests.stack import StackError

COLLECTION = "rehearsal"
DOCUMENTS = 400
WRITE_PERIOD = 0.05
LOOK_SECONDS = 0.2
SPOIL = f"""update crossfade.documents set fields = jsonb_set(fields, '{{n}}', '-1')
where path like '{COLLECTION}/%'"""
CAUGHT_BY = {"wrong": "verdicts", "errors": "error rates", "latency": "p99 ratio"}
"""What can go wrong, and the figure that has to show it."""
SETTINGS = """[shadow]
rate = 100000
queue = 10000
lag = 5.0
"""


@dataclass(frozen=True, slots=True)
class Options:
    """`fault_at`: the percent at which the fault begins. `slow`: seconds that a slow read lasts
    longer. The limits are those that as many reads can show on a machine that is busy with all of
    the stack."""

    fault: str = "wrong"
    reads: int = 100_000
    readers: int = 16
    steps: tuple[float, ...] = (1, 5, 25, 50, 100)
    bake: float = 5.0
    fault_at: float = 25
    slow: float = 4.0
    minutes: float = 10.0
    max_mismatch: float = 0.001
    max_error_delta: float = 0.01
    max_p99_ratio: float = 20.0
    min_samples: int = 300


@dataclass
class Report:
    """`moves` are the ramp's own sentences from the audit trail; `reads` are counted by the
    percent that was in force; `spoilt` those that showed a spoilt row, `slow` those that waited
    as long as a slow read lasts; `reaction` the seconds from the fault's begin until the ramp had
    taken the reads back; `caught`: it did so because of the fault."""

    fault: str
    reads: Counter[float] = field(default_factory=Counter)
    writes: int = 0
    stale: int = 0
    spoilt: int = 0
    slow: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    moves: list[str] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    setbacks: int = 0
    reaction: float | None = None
    caught: bool = False
    status: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        right = not self.stale and not self.errors
        return right and self.status == "done" and self.caught


class Rehearsal:
    """One ramp. `inject` brings the fault about, and ends it when it is given ""."""

    def __init__(
        self,
        client: AsyncCrossfade,
        admin: Any,
        inject: Callable[[str], Awaitable[object]],
        options: Options,
    ) -> None:
        self._client = client
        self._admin = admin
        self._inject = inject
        self._options = options
        self._acknowledged = [0] * DOCUMENTS
        self._made = 0
        self._percent = 0.0
        self._ended = False
        self.report = Report(options.fault)

    async def run(self, say: Callable[[str], None]) -> Report:
        """The ramp from its start to its end, and at least as many reads as were asked for."""
        began = time.monotonic()
        await self._client.commit(
            [Write.set(self._path(n), self._fields(n, 0)) for n in range(DOCUMENTS)]
        )
        options, before = self._options, await self._status()
        await self._admin.StartRamp(
            admin_pb2.StartRampRequest(
                collection=COLLECTION,
                steps=options.steps,
                bake_seconds=options.bake,
                max_mismatch=options.max_mismatch,
                max_error_delta=options.max_error_delta,
                max_p99_ratio=options.max_p99_ratio,
                min_samples=options.min_samples,
                who="rehearsal",
            )
        )
        work = [asyncio.create_task(self._write())]
        work += [asyncio.create_task(self._read(number)) for number in range(options.readers)]
        try:
            await self._watch(say, began + options.minutes * 60)
        finally:
            self._ended = True
            await self._inject("")
            await asyncio.gather(*work)
        await self._conclude(before)
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    async def _watch(self, say: Callable[[str], None], ends: float) -> None:
        """Follows the ramp, and brings the fault about on its way."""
        fault_at, told = None, None
        while time.monotonic() < ends:
            ramp = await self._ramp()
            self._percent = ramp.percent
            if (ramp.percent, ramp.setbacks) != told:
                told = (ramp.percent, ramp.setbacks)
                say(f"{sum(self.report.reads.values())} reads: {ramp.percent:g} %")
            if fault_at is None and ramp.percent == self._options.fault_at:
                await self._inject(self._options.fault)
                fault_at = time.monotonic()
                say(f"fault: {self._options.fault}")
            if fault_at is not None and self.report.reaction is None and ramp.setbacks:
                self.report.reaction = time.monotonic() - fault_at
                await self._inject("")
            enough = sum(self.report.reads.values()) >= self._options.reads
            if ramp.status == "stopped" or (ramp.status == "done" and enough):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _ramp(self) -> admin_pb2.Ramp:
        reply = await self._admin.ListRamps(admin_pb2.ListRampsRequest())
        found: admin_pb2.Ramp
        (found,) = [each for each in reply.ramps if each.collection == COLLECTION]
        return found

    async def _status(self) -> admin_pb2.Status:
        status: admin_pb2.Status = await self._admin.GetStatus(admin_pb2.GetStatusRequest())
        return status

    async def _conclude(self, before: admin_pb2.Status) -> None:
        report, ramp = self.report, await self._ramp()
        report.status, report.setbacks = ramp.status, ramp.setbacks
        trail = await self._admin.ListAudit(admin_pb2.ListAuditRequest(collection=COLLECTION))
        moves = []
        for each in trail.entries:
            if each.action == "ramp":
                moves.append(each)
                if each.before == "none":
                    break  # what is older is of another ramp
        figure = CAUGHT_BY[report.fault]
        report.caught = any(f"{figure}: " in each.reason for each in moves)
        report.moves = [f"{each.before} -> {each.after}: {each.reason}" for each in moves[::-1]]
        after = await self._status()
        held = {each.verdict: each.count for each in before.verdicts}
        report.verdicts = {
            each.verdict: each.count - held.get(each.verdict, 0) for each in after.verdicts
        }
        report.dropped = after.shadow_dropped - before.shadow_dropped

    # --- traffic ------------------------------------------------------------------------------

    def _path(self, number: int) -> str:
        return f"{COLLECTION}/d{number}"

    def _fields(self, number: int, made: int) -> dict[str, Any]:
        return {"n": number, "made": made, "text": "x" * 200}

    async def _write(self) -> None:
        while not self._ended:
            self._made += 1
            number = self._made * 7 % DOCUMENTS
            try:
                await self._client.set(self._path(number), self._fields(number, self._made))
            except CrossfadeError as error:
                self.report.errors[error.code.name] += 1
            else:
                self._acknowledged[number] = self._made
                self.report.writes += 1
            await asyncio.sleep(WRITE_PERIOD)

    async def _read(self, number: int) -> None:
        while not self._ended:
            number = (number + 13) % DOCUMENTS
            least, percent, began = self._acknowledged[number], self._percent, time.monotonic()
            try:
                found = await self._client.get(self._path(number))
            except CrossfadeError as error:
                self.report.errors[error.code.name] += 1
                continue
            self.report.reads[percent] += 1
            self.report.slow += time.monotonic() - began >= self._options.slow
            self._judge(found, number, least)

    def _judge(self, found: Snapshot, number: int, least: int) -> None:
        fields = found.fields
        if fields["n"] == -1:
            self.report.spoilt += 1
        elif fields["n"] != number or fields["made"] < least:
            self.report.stale += 1


def show(report: Report) -> None:
    print(f"what the ramp did ({report.fault}):")
    for move in report.moves:
        print(f"  {move}")
    by_percent = ", ".join(f"{count} at {at:g} %" for at, count in sorted(report.reads.items()))
    print(f"{sum(report.reads.values())} reads ({by_percent}), {report.writes} writes")
    print(f"verdicts: {report.verdicts}; {report.dropped} comparisons dropped")
    if report.reaction is not None:
        print(
            f"the reads were taken back {report.reaction:.1f} s after it began; "
            f"{report.spoilt} reads showed a spoilt row, {report.slow} were slow"
        )
    print(
        f"{'as it should be' if report.ok else 'NOT in order'}: ramp {report.status} after "
        f"{report.setbacks} setbacks, {report.stale} stale, {sum(report.errors.values())} errors, "
        f"{report.seconds} s"
    )


async def _rehearse(
    address: str, dsn: str, trouble: Path, faults: Sequence[str], options: Options
) -> list[Report]:
    """A ramp for each of the faults; ends with the first that is not in order."""
    sql = await asyncpg.connect(dsn)

    async def inject(fault: str) -> None:
        if fault == "wrong":
            await sql.execute(SPOIL)
            return
        said = trouble.with_suffix(".new")  # never half written
        said.write_text(f"latency {options.slow}" if fault == "latency" else fault)
        said.replace(trouble)

    reports: list[Report] = []
    try:
        async with (
            grpc.aio.insecure_channel(address) as channel,
            AsyncCrossfade(address, timeout=10.0) as client,
        ):
            admin = admin_pb2_grpc.AdminStub(channel)
            await admin.SetTraffic(admin_pb2.SetTrafficRequest(shadow_rate=1.0))
            for fault in faults:
                rehearsal = Rehearsal(client, admin, inject, replace(options, fault=fault))
                reports.append(await rehearsal.run(lambda line: print(line, flush=True)))
                show(reports[-1])
                if not reports[-1].ok:
                    break
    finally:
        await sql.close()
    return reports


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.ramp",
        description="Whole ramps under reads, with a mirror that goes wrong on the way.",
        epilog="Exit codes: 0 each ramp went back, came to its end, and every answer was right; "
        "1 otherwise.",
    )
    default = Options()
    parser.add_argument(
        "--fault",
        choices=[*CAUGHT_BY, "all"],
        default="all",
        help="spoilt rows, reads that fail, reads that are slow; a ramp each (%(default)s)",
    )
    parser.add_argument(
        "--reads", type=int, default=default.reads, help="of a ramp, at least (%(default)s)"
    )
    parser.add_argument("--bake", type=float, default=default.bake, help="seconds (%(default)s)")
    parser.add_argument("--minutes", type=float, default=default.minutes, help="of a ramp, at most")
    parser.add_argument("--embedded", action="store_true", help="even if the official is there")
    given = parser.parse_args(arguments)
    # Processes are started while channels are open; gRPC's fork handlers would crash them.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    options = Options(reads=given.reads, bake=given.bake, minutes=given.minutes)
    try:
        with tempfile.TemporaryDirectory(prefix="crossfade-ramp-") as name, ExitStack() as on:
            directory = Path(name)
            _, dsn = on.enter_context(servers.postgresql(directory, ("ramp",)))
            which, _, emulator = on.enter_context(
                servers.firestore(directory, embedded=given.embedded)
            )
            trouble = directory / "trouble.txt"
            _, address = on.enter_context(
                servers.sidecar(
                    directory,
                    "ramp",
                    dsn=dsn["ramp"],
                    emulator=emulator,
                    mirror="async",
                    more=SETTINGS,
                    program=(sys.executable, "-m", "loadtests.troubled", str(trouble)),
                )
            )
            asyncio.run(to_stage(address, "shadow"))
            print(f"Firestore: {which}")
            faults = list(CAUGHT_BY) if given.fault == "all" else [given.fault]
            reports = asyncio.run(_rehearse(address, dsn["ramp"], trouble, faults, options))
    except (BenchError, StackError) as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        return 1
    return 0 if all(report.ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
