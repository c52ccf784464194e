"""Pieces of requests, as fields for protobuf classes."""

import time
from typing import Any, TypeAlias

DATABASE = "projects/fuzz/databases/(default)"
ROOT = f"{DATABASE}/documents"
COSINE = 2
"""A distance measure of find_nearest."""
DOCUMENTS = 300
"""In the collection `c`: more than the server looks through without an index."""

Fields: TypeAlias = dict[str, Any]


def name(path: str) -> str:
    return f"{ROOT}/{path}"


def text(value: str) -> Fields:
    return {"string_value": value}


def number(value: int) -> Fields:
    return {"integer_value": value}


def array(*values: Fields) -> Fields:
    return {"array_value": {"values": list(values)}}


def mapping(**fields: Fields) -> Fields:
    return {"map_value": {"fields": fields}}


def vector(*numbers: float) -> Fields:
    items = array(*({"double_value": value} for value in numbers))
    return mapping(__type__=text("__vector__"), value=items)


EVERY_TYPE: Fields = {
    "null": {"null_value": 0},
    "bool": {"boolean_value": True},
    "int": number(-(2**63)),
    "double": {"double_value": float("nan")},
    "time": {"timestamp_value": {"seconds": 253_402_300_799, "nanos": 999_999_999}},
    "text": text("ä\0\U0001f600"),
    "bytes": {"bytes_value": b"\x00\xff"},
    "reference": {"reference_value": name("c/a")},
    "point": {"geo_point_value": {"latitude": -90.0, "longitude": 180.0}},
    "array": array(number(1), text("a"), mapping(x=number(1))),
    "vector": vector(1.0, -0.0),
    "map": mapping(a=mapping(b=array({"null_value": 0}))),
}
SMALL: Fields = {"n": number(1), "s": text("a"), "tags": array(text("x")), "v": vector(1.0, 2.0)}


def field(path: str) -> Fields:
    return {"field_path": path}


def compare(path: str, operator: str, value: Fields) -> Fields:
    return {"field_filter": {"field": field(path), "op": operator, "value": value}}


def unary(path: str, operator: str) -> Fields:
    return {"unary_filter": {"field": field(path), "op": operator}}


def both(operator: str, *filters: Fields) -> Fields:
    return {"composite_filter": {"op": operator, "filters": list(filters)}}


def query(collection: str = "c", *, group: bool = False, **rest: Any) -> Fields:
    selector = {"collection_id": collection, "all_descendants": group}
    return {"from_": [selector], **rest}


def order(path: str, direction: str = "ASCENDING") -> Fields:
    return {"field": field(path), "direction": direction}


def run(structured: Fields, parent: str = ROOT, **rest: Any) -> tuple[str, Fields]:
    return "RunQuery", {"parent": parent, "structured_query": structured, **rest}


def set_to(path: str, fields: Fields, **rest: Any) -> Fields:
    return {"update": {"name": name(path), "fields": fields}, **rest}


def commit(*writes: Fields, **rest: Any) -> tuple[str, Fields]:
    return "Commit", {"database": DATABASE, "writes": list(writes), **rest}


def begin(**options: Any) -> tuple[str, Fields]:
    return "BeginTransaction", {"database": DATABASE, "options": options}


def batch_get(*paths: str, **rest: Any) -> tuple[str, Fields]:
    return "BatchGetDocuments", {
        "database": DATABASE,
        "documents": [name(path) for path in paths],
        **rest,
    }


def documents() -> list[Fields]:
    """Writes that fill the database: more documents in `c` than are looked through without
    an index, some in groups and below missing ones."""
    values = [*EVERY_TYPE.values(), number(1), text("a"), vector(1.0, 0.5), array(number(1))]
    made = []
    for index in range(DOCUMENTS):
        value, other = values[index % len(values)], values[index * 7 % len(values)]
        fields = {
            "n": number(index % 10),
            "s": value,
            "v": vector(index, 1.0),
            "m": mapping(x=other),
        }
        made.append(set_to(f"c/{index:03}", {**fields, "tags": array(text("x"), number(index))}))
    made += [set_to(f"c/{index:03}/sub/x", {"n": number(index % 3)}) for index in range(40)]
    made += [set_to(f"gone/{index}/sub/y", {"n": number(1)}) for index in range(5)]
    return made


def recently() -> Fields:
    """A read_time that every version window still holds."""
    return {"seconds": int(time.time()) - 1}
