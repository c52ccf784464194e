"""Documents as the violet proxy server leaves them, with all their quirks. Pure, by seed.

One seed and number of tasks always give the same documents.
"""

import base64
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from violet.sample_tasks import (
    BASE_TIME,
    FILE_NAMES,
    TASK_TYPES,
    Fields,
    chunks,
    moment,
    new_id,
    new_task,
    number,
    prose,
    response_data,
    score,
    task,
)

INIT_COLLECTIONS = (
    "tasks",
    "files",
    "text_content",
    "miners",
    "miner_status",
    "task_assignments",
    "users",
    "task_evaluations",
    "system_metrics",
)
ROLES = ("client", "miner", "validator", "admin")


@dataclass(frozen=True, slots=True)
class Keys:
    """Ids of the sample's documents, for those who call for them. `dangling`: API keys whose
    user is not there."""

    tasks: tuple[str, ...]
    miners: tuple[int, ...]
    api_keys: tuple[str, ...]
    dangling: tuple[str, ...]


def keys(seed: int, tasks: int) -> Keys:
    """The keys of `documents(seed, tasks)`."""
    users = range(_users(tasks))
    return Keys(
        tuple(_uuid(seed, "task", i) for i in range(tasks)),
        _miners(seed, tasks),
        tuple(_api_key(seed, i) for i in users),
        (_api_key(seed, -1),),
    )


def documents(seed: int, tasks: int) -> Iterator[tuple[str, Fields]]:
    """(path, fields) of the whole database around this many tasks. Every path once."""
    yield from _inits()
    uids = _miners(seed, tasks)
    for i in range(tasks):
        task_id = _uuid(seed, "task", i)
        rng = _rng(seed, "task", i)
        fields = task(rng, i, task_id, uids)
        yield f"tasks/{task_id}", fields
        if fields.get("input_file", {}).get("storage_location") == "database_chunked":
            yield from chunks(rng, task_id)
        if i % 4 == 1:
            yield from _evaluated(rng, task_id, fields["task_type"], uids)
        if i % 16 == 7:
            yield f"archived_tasks/{task_id}", fields
    for i in range(_files(tasks)):
        yield _file(_rng(seed, "file", i), i, _uuid(seed, "file", i))
    for i, uid in enumerate(uids):
        yield from _miner(_rng(seed, "miner", uid), i, uid)
    for i in range(_users(tasks)):
        yield from _user(seed, i)
    yield from _stray_keys(seed)
    yield from _others(_rng(seed, "others", 0))


# --- keys ----------------------------------------------------------------------------------------


def _rng(seed: int, kind: str, number: int) -> Random:
    return Random(f"{seed}/{kind}/{number}")  # noqa: S311 (sample data)


def _uuid(seed: int, kind: str, number: int) -> str:
    return new_id(_rng(seed, f"{kind} id", number))


def _api_key(seed: int, number: int) -> str:
    raw = _rng(seed, "api key", number).randbytes(32)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _users(tasks: int) -> int:
    return max(8, min(tasks // 5, 500))


def _files(tasks: int) -> int:
    return max(12, tasks // 5)


def _miners(seed: int, tasks: int) -> tuple[int, ...]:
    """Uids of netuid 49; as ids they sort "101" < "11" < "2". 48 gets every task of era A."""
    fixed = (48, 2, 11, 101)
    count = max(12, min(tasks // 4, 256)) - len(fixed)
    rest = [uid for uid in range(256) if uid not in fixed]
    return fixed + tuple(_rng(seed, "miners", 0).sample(rest, min(count, len(rest))))


def _evaluated(
    rng: Random, task_id: str, task_type: str, uids: tuple[int, ...]
) -> Iterator[tuple[str, Fields]]:
    """What validators and trackers keep of one task."""
    uid, validator = rng.choice(uids), rng.choice((3, 7))
    rewards: Fields = {str(u): number(rng, n) for n, u in enumerate(rng.sample(uids, 3))}
    nothing: Fields = dict.fromkeys(
        ("response_data", "processing_time", "accuracy_score", "speed_score")
    )
    yield (
        f"miner_responses/{task_id}_{uid}",
        nothing
        | {"task_id": task_id, "miner_uid": uid, "status": "assigned", "metrics": {}}
        | {"assigned_at": moment(rng)},
    )
    yield (
        f"evaluations/{task_id}_{validator}",
        {
            "task_id": task_id,
            "validator_uid": validator,
            "evaluation_data": {"notes": prose(rng, 4), "scores": [1, 0.5, math.nan]},
            "evaluated_at": moment(rng),
            "task_type": task_type,
            "miner_rewards": rewards,
            "overall_score": number(rng, 0),
        },
    )
    if rng.random() < 0.3:
        yield (
            f"final_results/{task_id}",
            {
                "task_id": task_id,
                "status": "approved",
                "final_response": response_data(rng),
                "validator_accuracy_score": score(rng),
                "miner_rewards": rewards,
                "completed_at": moment(rng),
            },
        )


# --- files ---------------------------------------------------------------------------------------


def _file(rng: Random, i: int, file_id: str) -> tuple[str, Fields]:
    """The five shapes, and what is left after a move to the cloud."""
    name, size, at = rng.choice(FILE_NAMES), rng.randrange(100, 5_000), moment(rng)
    content = rng.randbytes(size)
    base: Fields = {
        "file_id": file_id,
        "file_name": name,
        "content_type": "audio/wav",
        "size": size,
        "file_type": ("audio", "transcription", "audio/mpeg")[i % 3],
    }
    both: Fields = {"created_at": at, "updated_at": at}
    smart = base | both | {"checksum": hashlib.sha256(content).hexdigest()}
    path, cloud = f"uploads/{file_id}", f"files/{file_id}"
    shapes: tuple[Fields, ...] = (
        base
        | {"file_path": path, "local_path": path, "file_url": f"/files/{file_id}"}
        | {"uploaded_at": at, "status": "active"}
        | {"checksum": hashlib.md5(content, usedforsecurity=False).hexdigest()},
        smart | {"local_path": path, "stored_locally": True, "storage_location": "local"},
        smart
        | {"content": base64.b64encode(content).decode(), "stored_locally": False}
        | {"storage_location": "firestore"},
        smart
        | {"file_path": cloud, "cloud_path": cloud, "file_url": f"gs://violet-files/{cloud}"}
        | {"public_url": None, "stored_in_cloud": i % 2 == 0, "bucket_name": "violet-files"}
        | {"storage_location": "cloud_storage"},
        both
        | {"file_id": file_id, "original_filename": name, "safe_filename": "file.wav"}
        | {"file_size": size, "content_type": "audio/wav", "file_type": "audio"}
        | {"storage_location": "r2", "r2_bucket": "violet", "r2_key": cloud}
        | {"public_url": f"https://cdn.example/{cloud}"}
        | {"file_hash": hashlib.sha256(content).hexdigest()},
        {"stored_in_cloud": True, "cloud_path": cloud, "updated_at": at},
    )
    return f"files/{file_id}", shapes[i % len(shapes)]


# --- miners and validators -----------------------------------------------------------------------


def specialization(rng: Random) -> Fields:
    """What a validator reports of a miner, by task type."""
    return {
        kind: {
            "total": (total := rng.randrange(1, 40)),
            "successful": rng.randrange(total + 1),
            "avg_time": round(rng.random() * 5, 3),
            "success_rate": round(rng.random(), 3),
        }
        for kind in rng.sample(TASK_TYPES, 2)
    }


def _miner(rng: Random, i: int, uid: int) -> Iterator[tuple[str, Fields]]:
    seen, hotkey = moment(rng), f"5{rng.randbytes(23).hex()}"
    if i % 2:
        miner: Fields = {"current_load": 1.0, "max_capacity": 5.0, "performance_score": 0.8}
        miner |= {"task_type_specialization": "transcription,tts", "ip": "10.0.0.1", "port": 8091}
        miner |= {"external_ip": None, "external_port": 8091}
    else:
        miner = {"current_load": 0, "max_capacity": 5, "task_type_specialization": ""}
        miner |= {"registered_at": seen, "updated_at": seen}
    shared: Fields = {"uid": uid, "hotkey": hotkey, "stake": 1_000.5, "is_serving": i % 3 != 0}
    yield f"miners/{uid}", miner | shared | {"last_seen": seen}
    yield f"miner_status/{uid}", _miner_status(rng, i, shared)
    iso = seen.replace(tzinfo=None).isoformat()
    report = shared | {"last_seen": iso, "task_type_specialization": specialization(rng)}
    for validator in (3, 7)[: 1 + i % 2]:
        yield (
            f"validator_reports/{validator}_{uid}_{seen:%Y%m%d_%H%M%S}",
            {
                "validator_uid": validator,
                "miner_uid": uid,
                "timestamp": seen,
                "epoch": 4_000 + i,
                "miner_status": report,
                "confidence_score": round(rng.uniform(0.1, 1.0), 3),
            },
        )
    if i % 3 == 0:
        consensus = shared | {"performance_score": 0.75, "current_load": 0.5}
        consensus |= {"consensus_validators": [3, 7], "consensus_confidence": 0.9}
        yield (
            f"miner_consensus/{uid}",
            {
                "miner_uid": uid,
                "consensus_status": consensus | {"consensus_timestamp": seen},
                "last_consensus": seen,
                "validator_reports_count": 2,
                "consensus_confidence": 0.0,
            },
        )


def _miner_status(rng: Random, i: int, shared: Fields) -> Fields:
    seen = moment(rng)
    if i % 5 == 4:  # era A: four fields of book-keeping, no uid
        return {
            "last_reported_by_validator": 7,
            "last_updated": seen,
            "validator_reports_count": rng.randrange(1, 99),
            "epoch": 4_000 + i,
        }
    iso = seen.replace(tzinfo=None).isoformat()
    fields = shared | {
        "performance_score": round(rng.random(), 3),
        "current_load": number(rng, rng.randrange(4)),
        "max_capacity": (5, 5.0, 100.0)[i % 3],
        "task_type_specialization": (specialization(rng), "tts,transcription", ["tts"], None, "")[
            i % 5
        ],
        "last_seen": iso if i % 4 == 1 else seen,
        "reported_by_validators": ["validator_48"] if i % 6 == 1 else [3, 7],
        "updated_at": seen,
        "epoch": 4_000 + i,
    }
    if i % 2:
        fields |= {"ip": "10.0.0.1", "port": 8091, "external_ip": None, "external_port": None}
        fields |= {"assigned_task_count": rng.randrange(3), "stake": 1_000}
    if i % 7 == 2:
        fields["task_type_specialization"] = None
    return fields


# --- users ---------------------------------------------------------------------------------------


def _user(seed: int, i: int) -> Iterator[tuple[str, Fields]]:
    rng = _rng(seed, "user", i)
    user_id, api_key = _uuid(seed, "user", i), _api_key(seed, i)
    role, at, email = ROLES[i % len(ROLES)], moment(rng, shifted=True), f"user.{i}@example.org"
    fields: Fields = {
        "user_id": user_id,
        "email": email,
        "role": role,
        "api_key": api_key,
        "api_key_created_at": at,
        "created_at": at,
        "updated_at": at,
        "is_active": i % 9 != 5,
        "last_login": None if i % 2 else moment(rng),
    }
    if role in {"miner", "validator"}:
        known = i % 8 < 4
        fields |= {
            "hotkey": f"5{rng.randbytes(23).hex()}" if known else None,
            "coldkey_address": f"5{rng.randbytes(23).hex()}" if known else None,
            "uid": rng.randrange(256) if known else None,
            "network": "finney" if known else None,
            "netuid": number(rng, 49) if known else None,
        }
    yield f"users/{user_id}", fields
    yield f"user_emails/{email}", {"user_id": user_id, "created_at": at}
    yield f"api_keys/{api_key}", {"user_id": user_id, "role": role, "created_at": at}


def _stray_keys(seed: int) -> Iterator[tuple[str, Fields]]:
    """An index without its user, and a second key that a rotation left behind."""
    rng = _rng(seed, "stray", 0)
    gone, kept = new_id(rng), _uuid(seed, "user", 0)
    index = {"role": "client", "created_at": moment(rng)}
    yield f"api_keys/{_api_key(seed, -1)}", index | {"user_id": gone}
    yield "user_emails/gone@example.org", {"user_id": gone, "created_at": moment(rng)}
    yield f"api_keys/{_api_key(seed, -2)}", index | {"user_id": kept}


# --- the rest ------------------------------------------------------------------------------------


def _inits() -> Iterator[tuple[str, Fields]]:
    for collection in INIT_COLLECTIONS:
        yield (
            f"{collection}/_init",
            {"created_at": BASE_TIME, "initialized": True, "version": "1.0.0"},
        )
    rng = _rng(0, "init", 0)
    task = new_task(rng, "sample_task_001", "transcription")
    task |= {"created_at": BASE_TIME, "updated_at": BASE_TIME, "tags": ["sample"]}
    task |= {"estimated_completion_time": 60, "callback_url": None}
    task["user_metadata"] = {"user_id": "user_001", "project": "demo", "description": "A sample"}
    task["input_file"] = {
        "file_id": "sample_file_001",
        "file_name": "sample.wav",
        "file_size": 1_024,
        "content_type": "audio/wav",
        "created_at": BASE_TIME,
        "updated_at": BASE_TIME,
    }
    yield "tasks/sample_task_001", task
    yield (
        "task_assignments/sample_task_001_48",
        {
            "assignment_id": new_id(rng),
            "miner_uid": 48,
            "assigned_at": BASE_TIME,
            "status": "pending",
            "processing_time": None,
            "accuracy_score": None,
            "speed_score": None,
        },
    )


def _others(rng: Random) -> Iterator[tuple[str, Fields]]:
    at = moment(rng)
    yield (
        "validators/3",
        {"validator_uid": 3, "last_seen": at, "last_epoch": 4_001, "updated_at": at},
    )
    yield (
        "validators/7",
        {"uid": 7, "registered_at": at, "last_seen": at, "status": "active"}
        | {"total_evaluations": 0, "average_evaluation_time": 0.0},
    )
    yield (
        "voices/english_1",
        {
            "voice_name": "english_1",
            "display_name": "English, calm",
            "language": "en",
            "file_id": new_id(rng),
            "r2_key": "voices/english_1.wav",
            "public_url": "https://cdn.example/voices/english_1.wav",
            "file_name": "english_1.wav",
            "file_size": 123_456,
            "file_type": "audio/wav",
            "created_at": at,
            "updated_at": at,
        },
    )
    yield (
        "system_metrics/day_1",
        {"metric_name": "tasks", "metric_value": 12.0, "recorded_at": at},
    )
    yield "task_metrics/day_1", {"count": 12, "by_type": {"tts": 3}, "recorded_at": at}
