"""The one document of all cases: 25 columns of violet's tasks, about 1.2 kB."""

from datetime import UTC, datetime
from typing import Any

COLLECTION = "tasks"
COUNT = 128
"""Documents in each store, ids task_0000 to task_0127."""
IN_QUERY = 100
"""How many of them the query finds."""
FOUND_STATUS = "pending"

_MOMENT = datetime(2025, 12, 9, 8, 30, 15, 123456, tzinfo=UTC)


VOICE = "english_1"
USER = "0b9d1a8e-5f8b-4a55-8d77-3c6b1f0e9a10"
PARENTS: dict[str, dict[str, Any]] = {
    f"voices/{VOICE}": {"voice_name": VOICE},
    f"users/{USER}": {"user_id": USER},
}
"""What the tasks refer to: their foreign keys hold."""


def task_id(number: int) -> str:
    return f"task_{number % COUNT:04}"


def fields(number: int) -> dict[str, Any]:
    return {
        "task_id": task_id(number),
        "task_type": "transcription",
        "status": FOUND_STATUS if number % COUNT < IN_QUERY else "completed",
        "priority": "normal",
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
        "input_file": {
            "file_id": "6f8a3a52-7c1f-4a63-9be1-2f1f0b0b7a11",
            "file_name": "meeting of the ninth.wav",
            "file_type": "audio/wav",
            "file_size": 4_194_304,
            "local_path": "/var/violet/uploads/6f8a3a52-7c1f-4a63-9be1-2f1f0b0b7a11",
            "file_url": "gs://violet-files/6f8a3a52-7c1f-4a63-9be1-2f1f0b0b7a11",
            "checksum": "-4611686018427387904",
            "uploaded_at": _MOMENT,
            "storage_location": "cloud_storage",
        },
        "source_language": "en",
        "target_language": "de",
        "model_id": "whisper-large-v3",
        "voice_name": VOICE,
        "required_miner_count": 3,
        "min_miner_count": 1,
        "max_miner_count": 5,
        "actual_miner_count": 3,
        "assigned_miners": [48, 101, 7],
        "distributed_at": _MOMENT,
        "miner_responses": [
            {
                "miner_uid": 48,
                "response": {
                    "transcript": "the quick sound of a distant river",
                    "confidence": 0.93,
                },
                "submitted_at": _MOMENT,
            }
        ],
        "response_count": 1,
        "last_response_at": _MOMENT,
        "estimated_completion_time": 60,
        "callback_url": "https://app.example/callback",
        "user_metadata": {"project": "demo", "description": "a sample"},
        "user_id": USER,
        "evaluated_by": 3,
    }
