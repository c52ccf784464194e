"""violet.v1.Miners: miners, what validators say of them, and the validators."""

from collections.abc import Awaitable, Callable
from typing import Any

from crossfade.call import Call
from crossfade.document import Document, Fields, from_micros
from crossfade.errors import InvalidArgument, NotFound
from crossfade.query import FieldFilter, Op
from crossfade.transactions import Transaction
from crossfade_api.v1 import violet_pb2 as pb
from violet.operations import loads, messages, miners, pages, picking
from violet.operations.data import (
    Data,
    carry_out,
    equals,
    given,
    limit_of,
    matching,
    now,
    part_of,
    path_in,
    seconds,
    uid_of,
)
from violet.operations.decision import Decision, drawn
from violet.operations.fields import age
from violet.operations.methods.putting import put
from violet.operations.miners import Report

MOST_PICKED = 256
MOST_REPORTS = 1_000
MAX_DELTA = 1_000_000
STALE_VALIDATORS = 10 * 60.0


class MinerMethods:
    def __init__(self, data: Data) -> None:
        self.data = data

    # --- miners ---------------------------------------------------------------------------------

    async def register_miner(self, request: pb.MinerRequest, call: Call) -> pb.Changed:
        uid = uid_of(request.uid)
        fields = messages.fields_of(request.fields)

        def decide(miner: Document | None, moment: int) -> Decision[Fields]:
            return miners.register(uid, miner, fields, moment)

        return await put(self.data, miners.miner_path(uid), decide, call, request.request_id)

    async def get_miner(self, request: pb.MinerKey, call: Call) -> bytes:
        return messages.found(await self.data.stored(miners.miner_path(uid_of(request.uid)), call))

    async def list_miners(self, request: pb.ListRequest, call: Call) -> pb.Documents:
        return await self._listed("miners", request, call)

    async def get_miner_status(self, request: pb.MinerKey, call: Call) -> bytes:
        return messages.found(await self.data.stored(loads.status_path(uid_of(request.uid)), call))

    async def list_miner_status(
        self, request: pb.ListMinerStatusRequest, call: Call
    ) -> pb.Documents:
        query = matching("miner_status", equals("is_serving", True) if request.serving else None)
        max_age = seconds(request, "max_age", 0)

        def recent(status: Document) -> bool:
            old = age(status.fields, picking.SEEN, now())
            return not request.HasField("max_age") or (old is not None and old <= max_age)

        size = pages.size_of(request.page_size)
        return messages.documents(
            *await self.data.page(query, size, request.page_token, call, recent)
        )

    async def upsert_miner_status(
        self, request: pb.UpsertMinerStatusRequest, call: Call
    ) -> pb.Changed:
        uid, validator = uid_of(request.uid), uid_of(request.validator_uid, "validator_uid")
        fields = messages.fields_of(request.fields)

        def decide(status: Document | None, moment: int) -> Decision[Fields]:
            return miners.merge_report(uid, status, validator, request.epoch, fields, moment)

        return await put(self.data, loads.status_path(uid), decide, call, request.request_id)

    async def pick_available_miners(
        self, request: pb.PickAvailableMinersRequest, call: Call
    ) -> pb.AvailableMiners:
        limit = pages.size_of(request.limit, default=10, most=MOST_PICKED)
        max_age = seconds(request, "max_age", picking.MAX_AGE)
        query = matching("miner_status", equals("is_serving", True))
        serving = [status async for status in self.data.scan(query, call)]
        reply = pb.AvailableMiners()
        for miner in picking.pick(serving, request.task_type, now(), limit=limit, max_age=max_age):
            entry = reply.miners.add(uid=miner.uid, score=miner.score)
            messages.encode(
                self.data.database, miner.status.path, miner.status.fields, entry.status
            )
        return reply

    async def adjust_miner_load(self, request: pb.AdjustMinerLoadRequest, call: Call) -> pb.Changed:
        uid = uid_of(request.uid)
        if abs(request.delta) > MAX_DELTA:
            raise InvalidArgument(f"delta: it is over the limit of {MAX_DELTA}")

        def decide(status: Document | None, moment: int) -> Decision[Fields]:
            if status is None and request.must_exist:
                raise NotFound(f"document {loads.status_path(uid)} does not exist")
            return miners.adjust(uid, status, request.delta, moment)

        return await put(self.data, loads.status_path(uid), decide, call, request.request_id)

    async def delete_stale_miners(self, request: pb.DeleteStaleRequest, call: Call) -> pb.Swept:
        return await self._delete_stale("miner_status", picking.MAX_AGE, request, call)

    # --- reports --------------------------------------------------------------------------------

    async def record_reports(
        self, request: pb.RecordReportsRequest, call: Call
    ) -> pb.RecordReportsReply:
        """Each miner in a transaction of its own: with all of them in one, two validators'
        reports would always be in each other's way."""
        validator = uid_of(request.validator_uid, "validator_uid")
        window = seconds(request, "window", miners.WINDOW)
        if len(request.reports) > MOST_REPORTS:
            raise InvalidArgument(f"reports: {len(request.reports)}, the limit is {MOST_REPORTS}")
        reports = [self._report(item, validator, request.epoch) for item in request.reports]
        if len({report.miner for report in reports}) != len(reports):
            raise InvalidArgument("reports: a miner is reported twice")
        reply = pb.RecordReportsReply(processed=len(reports), replayed=bool(reports))

        def work(report: Report) -> Callable[[Transaction], Awaitable[tuple[Fields, bool]]]:
            async def recorded(transaction: Transaction) -> tuple[Fields, bool]:
                return await self._record(transaction, report, request.request_id, window)

            return recorded

        works = [
            (work(report), part_of(request.request_id, str(report.miner))) for report in reports
        ]
        for report, (consensus, replayed) in zip(
            reports, await self.data.side_by_side(works, call, request.request_id), strict=True
        ):
            path = miners.consensus_path(report.miner)
            messages.encode(self.data.database, path, consensus, reply.consensus.add())
            reply.replayed = reply.replayed and replayed
        return reply

    async def _record(
        self, transaction: Transaction, report: Report, request_id: str, window: float
    ) -> tuple[Fields, bool]:
        uid, moment = report.miner, transaction.now
        status, consensus = await transaction.get_all(
            [loads.status_path(uid), miners.consensus_path(uid)]
        )
        if transaction.replayed:
            return {} if consensus is None else consensus.fields, True
        # The time is for those who read; what keeps two of one second apart is the rest.
        stamp = from_micros(moment).strftime("%Y%m%d_%H%M%S")
        unique = drawn(request_id or None, f"report of {uid}")[:12]
        path = f"validator_reports/{report.validator}_{uid}_{stamp}_{unique}"
        carry_out(transaction, miners.record(report, path, moment))
        carry_out(
            transaction,
            miners.merge_report(uid, status, report.validator, report.epoch, report.status, moment),
        )
        return carry_out(transaction, miners.agree(report, consensus, moment, window)), False

    @staticmethod
    def _report(item: pb.Report, validator: int, epoch: int) -> Report:
        if item.confidence and not 0.1 <= item.confidence <= 1.0:
            raise InvalidArgument("reports.confidence: it is not between 0.1 and 1.0")
        return Report(
            validator,
            uid_of(item.miner_uid, "reports.miner_uid"),
            epoch,
            messages.fields_of(item.status, "reports.status"),
            item.confidence or 1.0,
        )

    async def get_consensus(self, request: pb.MinerKey, call: Call) -> bytes:
        path = miners.consensus_path(uid_of(request.uid))
        return messages.found(await self.data.stored(path, call))

    async def list_consensus(self, request: pb.ListRequest, call: Call) -> pb.Documents:
        return await self._listed("miner_consensus", request, call)

    async def get_report_statistics(
        self, request: pb.GetReportStatisticsRequest, call: Call
    ) -> pb.ReportStatistics:
        since: Any = from_micros(now() - int(seconds(request, "window", miners.WINDOW) * 1_000_000))
        recent = FieldFilter(("timestamp",), Op.GREATER_THAN_OR_EQUAL, since)
        counts = await self.data.counts(
            [
                matching("validator_reports"),
                matching("validator_reports", recent),
                matching(
                    "miner_consensus", FieldFilter(("miner_uid",), Op.GREATER_THAN_OR_EQUAL, 0)
                ),
                matching("validators", FieldFilter(("updated_at",), Op.IS_NOT_NULL)),
            ],
            call,
        )
        return pb.ReportStatistics(
            reports=counts[0],
            recent_reports=counts[1],
            miners_with_consensus=counts[2],
            validators=counts[3],
        )

    # --- metrics --------------------------------------------------------------------------------

    async def add_miner_metrics(self, request: pb.AddMinerMetricsRequest, call: Call) -> pb.Changed:
        uid = uid_of(request.uid)
        path = path_in("miner_metrics", f"{uid}_{request.hotkey}", "hotkey")
        increments = messages.fields_of(request.increments, "increments")
        fields = messages.fields_of(request.fields)
        unions = messages.fields_of(request.unions, "unions")

        def decide(metrics: Document | None, moment: int) -> Decision[Fields]:
            return miners.add_metrics(
                uid, request.hotkey, metrics, increments, fields, unions, moment
            )

        return await put(self.data, path, decide, call, request.request_id)

    async def get_miner_metrics(self, request: pb.MinerMetricsKey, call: Call) -> bytes:
        uid = uid_of(request.uid)
        path = path_in("miner_metrics", f"{uid}_{request.hotkey}", "hotkey")
        return messages.found(await self.data.stored(path, call))

    async def list_miner_metrics(self, request: pb.ListRequest, call: Call) -> pb.Documents:
        return await self._listed("miner_metrics", request, call)

    # --- validators -----------------------------------------------------------------------------

    async def put_validator(self, request: pb.PutValidatorRequest, call: Call) -> pb.Changed:
        uid = uid_of(request.uid)
        fields = messages.fields_of(request.fields)

        def decide(validator: Document | None, moment: int) -> Decision[Fields]:
            return miners.put_validator(uid, validator, fields, moment)

        return await put(self.data, f"validators/{uid}", decide, call, request.request_id)

    async def get_validator(self, request: pb.ValidatorKey, call: Call) -> bytes:
        return messages.found(await self.data.stored(f"validators/{uid_of(request.uid)}", call))

    async def list_validators(self, request: pb.ListValidatorsRequest, call: Call) -> pb.Documents:
        query = matching("validators", given("status", request.status))
        size = pages.size_of(request.page_size)
        return messages.documents(*await self.data.page(query, size, request.page_token, call))

    async def delete_stale_validators(self, request: pb.DeleteStaleRequest, call: Call) -> pb.Swept:
        return await self._delete_stale("validators", STALE_VALIDATORS, request, call)

    # --- in common ------------------------------------------------------------------------------

    async def _listed(self, collection: str, request: pb.ListRequest, call: Call) -> pb.Documents:
        size = pages.size_of(request.page_size)
        found = await self.data.page(matching(collection), size, request.page_token, call)
        return messages.documents(*found)

    async def _delete_stale(
        self, collection: str, default: float, request: pb.DeleteStaleRequest, call: Call
    ) -> pb.Swept:
        older_than = seconds(request, "older_than", default)

        def stale(document: Document) -> bool:
            return miners.is_stale(document, now(), older_than)

        size = limit_of(request.limit)
        query = matching(collection)
        found, token = await self.data.documents(query, size, request.page_token, call)
        gone = await self.data.delete_where(
            filter(stale, found),
            lambda document, moment: miners.is_stale(document, moment, older_than),
            call,
            request.request_id,
        )
        return messages.swept(gone, token)
