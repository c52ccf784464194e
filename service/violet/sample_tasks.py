"""Tasks of the sample: every shape that a writer of the proxy server ever gave one. Pure."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

BASE_TIME = datetime(2025, 12, 9, 8, 30, tzinfo=UTC)
TASK_TYPES = (
    "transcription",
    "tts",
    "summarization",
    "translation",
    "video_transcription",
    "text_translation",
    "document_translation",
)
# The seven of the enum, then the words that various writers store besides.
STATUSES = (
    "pending",
    "assigned",
    "in_progress",
    "completed",
    "approved",
    "failed",
    "cancelled",
    "processing",
    "ready_for_evaluation",
    "done",
    "distributed",
)
# A miner is asked what it has to do in these.
OPEN_STATUSES = ("pending", "assigned", "processing")
_TEXT_TYPES = {"tts", "summarization", "translation", "text_translation"}
FILE_NAMES = ("meeting.wav", "Gespräch №1.mp3", "会议录音.m4a", "voice 🎙.ogg", "lecture.mp4")
_STORAGE = ("cloud_storage", "firestore", "local", "r2", "database", "database_chunked")
_WORDS = ("quick", "sound", "distant", "river", "crosses", "quiet", "house", "before", "dawn")

Fields = dict[str, Any]


def new_id(rng: Random) -> str:
    """A random uuid4 as text."""
    return str(UUID(bytes=rng.randbytes(16), version=4))


def moment(rng: Random, shifted: bool = False) -> datetime:
    """Some time of the last month; `shifted`: written by naive now() on a host at +03:00."""
    back = timedelta(seconds=rng.randrange(30 * 86_400), microseconds=rng.randrange(1_000_000))
    return BASE_TIME - back + timedelta(hours=3 if shifted else 0)


def prose(rng: Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def number(rng: Random, whole: int) -> int | float:
    """The same number as an integer or a double, as the writer happened to have it."""
    return whole if rng.random() < 0.5 else float(whole)


def score(rng: Random) -> float:
    """A form's float: NaN and the infinities pass."""
    odd = rng.random()
    if odd < 0.04:
        return math.nan
    return math.inf if odd < 0.06 else -math.inf if odd < 0.07 else round(rng.random(), 4)


def new_task(rng: Random, task_id: str, task_type: str | None = None) -> Fields:
    """A task at its birth, in the shape of es.create_task: only the keys that were given.

    Without its two times, which the store sets.
    """
    task_type = task_type or rng.choice(TASK_TYPES)
    fields: Fields = {
        "task_id": task_id,
        "task_type": task_type,
        "status": "pending",
        "priority": rng.choice(("low", "normal", "high", "urgent")),
        "required_miner_count": rng.choice((1, 3)),
        "source_language": rng.choice(("en", "de", "zh", "sw")),
    }
    if "translation" in task_type:
        fields["target_language"] = "en"
    if task_type in _TEXT_TYPES:
        fields["input_text"] = _input_text(rng, task_type, words=60)
    else:
        fields["input_file"] = _input_file(rng, "cloud_storage")
    return fields


def task(rng: Random, i: int, task_id: str, uids: tuple[int, ...]) -> Fields:
    created = moment(rng, shifted=i % 7 == 3)
    fields = new_task(rng, task_id, TASK_TYPES[i % len(TASK_TYPES)])
    fields |= {
        "status": STATUSES[i % len(STATUSES)],
        "created_at": created,
        "updated_at": created + timedelta(seconds=rng.randrange(7_200)),
    }
    if "input_file" in fields:
        fields["input_file"] = _input_file(rng, _STORAGE[i // 2 % len(_STORAGE)])
    elif i % 9 == 1:
        fields["input_text"] = _input_text(rng, fields["task_type"], words=900)
    writer = i % 3
    if writer == 1:  # tm.create_task: nulls and empties, and the file by its id only
        fields |= {"callback_url": None, "user_metadata": {}, "assigned_miners": []}
        fields |= {"estimated_completion_time": number(rng, 60), "target_language": "en"}
        if "input_file" in fields and "file_id" in fields["input_file"] and i % 2:
            fields["input_file_id"] = fields.pop("input_file")["file_id"]
    elif writer == 2:  # era D
        fields["model_id"] = None if i % 2 else "whisper-large-v3"
        fields["required_miner_count"] = number(rng, 3)
    if i % 5 == 4:
        fields["priority"] = "asap!! (free text)"
    if fields["status"] not in {"pending", "distributed"} or i % 22 == 0:
        _assign(rng, fields, rng.sample(uids, rng.choice((1, 3))), created)
    _respond(rng, i, fields, created)
    if fields["status"] in {"approved", "done"}:
        fields |= {"evaluated_by": rng.choice((3, 7)), "evaluated_at": moment(rng)}
    if i % 13 == 6:  # a dotted path that a merge took for a name
        fields["input_file.chunks_cleaned"] = True
        fields["user_metadata"] = {"project": "demo", "a.b": {"`": 1}}
    if i % 17 == 5:
        fields |= {"tags": ["sample", "ünïcode", ""], "voice_name": "", "speaker_wav_url": None}
    return fields


def _assign(rng: Random, fields: Fields, uids: list[int], at: datetime) -> None:
    at += timedelta(seconds=rng.randrange(60))
    fields["assigned_miners"] = uids
    fields["task_assignments"] = [
        {"assignment_id": new_id(rng), "miner_uid": uid, "assigned_at": at, "status": "pending"}
        for uid in uids
    ]
    fields["distributed_at"] = at
    if rng.random() < 0.5:
        fields["actual_miner_count"] = len(uids)


def _input_text(rng: Random, task_type: str, words: int) -> Fields:
    text = prose(rng, words)
    at = moment(rng)
    fields: Fields = {
        "content_id": new_id(rng),
        "text": text,
        "source_language": "en",
        "text_length": len(text),
        "word_count": words,
        "created_at": at,
        "updated_at": at,
    }
    if "translation" in task_type:
        metadata = {"translation_type": "text", "source_language": "en", "target_language": "fr"}
        return fields | {"target_language": "fr", "metadata": metadata}
    fields |= {"detected_language": "en", "language_confidence": 1.0}
    return fields | {"metadata": {"original_source_language": "en", "detection_method": "user"}}


def _input_file(rng: Random, location: str) -> Fields:
    file_id, name = new_id(rng), rng.choice(FILE_NAMES)
    fields: Fields = {
        "file_id": file_id,
        "file_name": name,
        "file_type": "audio/wav",
        "file_size": rng.randrange(10_000, 5 * 2**30),
        "local_path": f"/var/violet/uploads/{file_id}",
        "file_url": f"gs://violet-files/{file_id}" if location == "cloud_storage" else "",
        # str(hash(bytes)): a signed 64-bit decimal
        "checksum": str(rng.randrange(-(2**63), 2**63)),
        "uploaded_at": moment(rng, shifted=True),
        "storage_location": location,
    }
    if location == "database":
        del fields["file_id"]
    if location == "r2":
        fields["public_url"] = None if rng.random() < 0.5 else f"https://cdn.example/{file_id}"
    if location == "database_chunked":
        fields |= {"chunked": True, "chunk_count": 3}
        if rng.random() < 0.5:  # written later by a dotted path
            fields |= {"chunks_cleaned": True, "chunks_cleaned_at": moment(rng)}
    return fields


def chunks(rng: Random, task_id: str) -> Iterator[tuple[str, Fields]]:
    for i in range(3):
        data = rng.randbytes(48)
        yield (
            f"tasks/{task_id}/audio_chunks/chunk_{i}",
            {"index": i, "data": data, "size": len(data), "created_at": moment(rng)},
        )


def _respond(rng: Random, i: int, fields: Fields, at: datetime) -> None:
    uids = fields.get("assigned_miners") or []
    shapes = (_by_es, _by_mrh, _by_ra)
    variant = i % 6
    if not uids or variant == 0:
        return  # absent
    if variant == 5:  # the older model: a map by uid
        fields["miner_responses"] = {
            str(uid): _by_mrh(rng, fields["task_id"], uid, at) for uid in uids
        }
        return
    made = [
        shapes[(n + variant) % 3 if variant == 4 else variant - 1](rng, fields["task_id"], uid, at)
        for n, uid in enumerate(uids)
    ]
    fields["miner_responses"] = made
    if variant == 3:  # the aggregator's flush
        fields |= {"response_count": len(made), "last_response_at": at + timedelta(hours=3)}
    elif variant == 2:
        fields |= {"best_response": made[0], "all_miners_completed_at": at + timedelta(minutes=2)}


def _by_es(rng: Random, _task_id: str, uid: int, at: datetime) -> Fields:
    return {"response_id": new_id(rng), "miner_uid": uid, "submitted_at": at, "speed": score(rng)}


def _by_mrh(rng: Random, task_id: str, uid: int, at: datetime) -> Fields:
    fields: Fields = {
        "miner_uid": uid,
        "task_id": task_id,
        "response_data": response_data(rng),
        "submitted_at": at,
        "status": "completed",
    }
    if rng.random() < 0.5:
        fields |= {"accuracy_score": score(rng), "processing_time": number(rng, 2)}
    return fields


def _by_ra(rng: Random, task_id: str, uid: int, at: datetime) -> Fields:
    local = at + timedelta(hours=3)
    return {
        "miner_uid": uid,
        "response": _by_mrh(rng, task_id, uid, at),
        "submitted_at": local,
    }


def response_data(rng: Random) -> Fields:
    """What a miner posts: scores from a form, and whatever JSON it likes as output."""
    output = rng.choice(
        (
            {"transcript": prose(rng, 12), "confidence": 0.93, "language": "en"},
            {"translated_text": prose(rng, 8), "metadata": {"model": "m2m", "beams": [4]}},
            {"audio_file": _input_file(rng, "local"), "sample_rate": 22_050},
            {"output_data": prose(rng, 5)},
            [1, 2.0, None, {"deep": [{"er": True}]}],
            0,
            None,
        )
    )
    return {
        "output_data": output,
        "processing_time": round(rng.random() * 9, 3),
        "accuracy_score": score(rng),
        "speed_score": score(rng),
    }
