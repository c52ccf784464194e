"""The proxy server's collections and the tables that hold them. Declarations only."""

from crossfade.mapping import (
    CollectionMapping,
    DerivedMapping,
    FromColumns,
    FromElements,
    Mappings,
)
from violet import tables
from violet.tables import metadata, tasks

__all__ = ["MAPPINGS", "metadata", "tasks"]

_OWN = [
    CollectionMapping(str(table.name), table)
    for table in (
        tables.files,
        tables.voices,
        tables.users,
        tables.tasks,
        tables.archived_tasks,
        tables.text_content,
        tables.miners,
        tables.miner_status,
        tables.task_assignments,
        tables.validators,
        tables.validator_reports,
        tables.miner_consensus,
        tables.evaluations,
        tables.final_results,
        tables.system_metrics,
        tables.task_metrics,
    )
]
_BY_ID = {mapping.collection_id: mapping for mapping in _OWN}

MAPPINGS = Mappings(
    [
        *_OWN,
        CollectionMapping("audio_chunks", tables.audio_chunks, parent=_BY_ID["tasks"]),
        # The application's own indexes, in documents: what a unique column is in PostgreSQL.
        DerivedMapping(
            "user_emails",
            tables.user_emails,
            _BY_ID["users"],
            FromColumns("email", {"user_id": "user_id", "created_at": "created_at"}),
            secret_ids=True,
        ),
        DerivedMapping(
            "api_keys",
            tables.api_keys,
            _BY_ID["users"],
            FromColumns(
                "api_key",
                {"user_id": "user_id", "role": "role", "created_at": "api_key_created_at"},
            ),
            secret_ids=True,
        ),
        DerivedMapping(
            "miner_responses",
            tables.miner_responses,
            _BY_ID["tasks"],
            FromElements("miner_responses", "miner_uid"),
        ),
    ]
)
