"""violet.v1.Content: files, voices, texts, metrics."""

from crossfade.call import Call
from crossfade.document import Document, Fields
from crossfade.errors import InvalidArgument, NotFound
from crossfade.query import Filter
from crossfade.wire import decode_time
from crossfade_api.v1 import violet_pb2 as pb
from violet import tables
from violet.operations import content, messages, pages
from violet.operations.data import (
    Data,
    equals,
    given,
    limit_of,
    matching,
    now,
    path_in,
    seconds,
)
from violet.operations.decision import Decision, drawn
from violet.operations.methods.putting import delete, put

EXPIRE_AFTER = 30 * 24 * 3600.0


class ContentMethods:
    def __init__(self, data: Data) -> None:
        self.data = data

    # --- files ----------------------------------------------------------------------------------

    async def put_file(self, request: pb.PutRequest, call: Call) -> pb.Changed:
        return await self._put("files", "file_id", request, call)

    async def get_file(self, request: pb.GetRequest, call: Call) -> bytes:
        return await self._get("files", request, call)

    async def delete_file(self, request: pb.DeleteRequest, call: Call) -> pb.Deleted:
        return await self._delete("files", request, call)

    async def list_files(self, request: pb.ListFilesRequest, call: Call) -> pb.Documents:
        filters = (
            given("file_type", request.file_type),
            given("original_filename", request.original_filename),
        )
        return await self._listed("files", filters, request, call)

    async def get_file_statistics(
        self,
        request: pb.GetFileStatisticsRequest,  # noqa: ARG002 - it asks for nothing in particular
        call: Call,
    ) -> pb.FileStatistics:
        places = tables.STORAGE
        queries = [matching("files", equals("storage_location", place)) for place in places]
        total, *counts = await self.data.counts([matching("files"), *queries], call)
        return pb.FileStatistics(
            files=total,
            by_storage_location=dict(zip(places, counts, strict=True)),
            other=total - sum(counts),
        )

    async def expire_files(self, request: pb.ExpireFilesRequest, call: Call) -> pb.Swept:
        older_than = seconds(request, "older_than", EXPIRE_AFTER)

        def expired(file: Document, moment: int) -> bool:
            return content.is_expired(file.fields, moment, older_than)

        size = limit_of(request.limit)
        found, token = await self.data.documents(matching("files"), size, request.page_token, call)
        old = [file for file in found if expired(file, now())]
        gone = await self.data.delete_where(old, expired, call, request.request_id)
        return messages.swept(gone, token)

    # --- voices ---------------------------------------------------------------------------------

    async def put_voice(self, request: pb.PutRequest, call: Call) -> pb.Changed:
        return await self._put("voices", "voice_name", request, call)

    async def get_voice(self, request: pb.GetRequest, call: Call) -> bytes:
        return await self._get("voices", request, call)

    async def get_default_voice(self, request: pb.GetDefaultVoiceRequest, call: Call) -> pb.Found:
        query = matching("voices", given("language", request.language))
        # The first may be the one that is none.
        found, _ = await self.data.page(query, 2, "", call)
        if not found:
            raise NotFound("voices: there is none")
        return pb.Found(document=found[0])

    async def list_voices(self, request: pb.ListVoicesRequest, call: Call) -> pb.Documents:
        return await self._listed("voices", (given("language", request.language),), request, call)

    async def delete_voice(self, request: pb.DeleteRequest, call: Call) -> pb.Deleted:
        return await self._delete("voices", request, call)

    # --- texts ----------------------------------------------------------------------------------

    async def put_text(self, request: pb.PutRequest, call: Call) -> pb.Changed:
        return await self._put("text_content", "content_id", request, call)

    async def get_text(self, request: pb.GetRequest, call: Call) -> bytes:
        return await self._get("text_content", request, call)

    async def delete_text(self, request: pb.DeleteRequest, call: Call) -> pb.Deleted:
        return await self._delete("text_content", request, call)

    # --- metrics --------------------------------------------------------------------------------

    async def record_system_metric(
        self, request: pb.RecordSystemMetricRequest, call: Call
    ) -> pb.Changed:
        if not request.metric_name:
            raise InvalidArgument("metric_name: it is empty")
        path = f"system_metrics/{drawn(request.request_id or None, 'metric')}"
        data = messages.fields_of(request.metric_data, "metric_data")
        moment = None
        if request.HasField("recorded_at"):
            moment = decode_time(request.recorded_at, "recorded_at")

        def decide(_: Document | None, at: int) -> Decision[Fields]:
            recorded = at if moment is None else moment
            return content.metric(path, request.metric_name, request.metric_value, data, recorded)

        return await put(self.data, path, decide, call, request.request_id)

    async def list_system_metrics(
        self, request: pb.ListSystemMetricsRequest, call: Call
    ) -> pb.Documents:
        filters = (given("metric_name", request.metric_name),)
        return await self._listed("system_metrics", filters, request, call)

    # --- in common ------------------------------------------------------------------------------

    async def _put(
        self, collection: str, key: str, request: pb.PutRequest, call: Call
    ) -> pb.Changed:
        path = path_in(collection, request.id, "id")
        update = messages.put_of(request, path, self.data.database)

        def decide(document: Document | None, moment: int) -> Decision[Fields]:
            return content.store(document, update, key, moment, merge=request.merge)

        return await put(self.data, path, decide, call, request.request_id)

    async def _get(self, collection: str, request: pb.GetRequest, call: Call) -> bytes:
        return messages.found(await self.data.stored(path_in(collection, request.id, "id"), call))

    async def _delete(self, collection: str, request: pb.DeleteRequest, call: Call) -> pb.Deleted:
        path = path_in(collection, request.id, "id")
        return await delete(self.data, path, call, request.request_id)

    async def _listed(
        self,
        collection: str,
        filters: tuple[Filter | None, ...],
        request: pb.ListFilesRequest | pb.ListVoicesRequest | pb.ListSystemMetricsRequest,
        call: Call,
    ) -> pb.Documents:
        query = matching(collection, *filters)
        size = pages.size_of(request.page_size)
        return messages.documents(*await self.data.page(query, size, request.page_token, call))
