"""Requests that are small to send and could be dear to answer: none may stop the server.

Everything runs on one event loop, so what one request costs, every other caller waits for.
"""

import time
from typing import Any

import pytest

from tests.fuzz.holding import defect
from tests.fuzz.legal import (
    ROOT,
    array,
    batch_get,
    both,
    commit,
    compare,
    field,
    mapping,
    name,
    number,
    order,
    query,
    run,
    set_to,
    text,
)
from tests.fuzz.server import MEBIBYTE
from tests.fuzz.talking import asked

SECONDS = 5.0
"""Far more than any of them takes, and far less than what is quadratic takes."""

THIRTY = array(*map(number, range(30)))
EITHER = both("OR", compare("a", "EQUAL", number(1)), compare("b", "EQUAL", number(1)))
MANY = [f"f{n}" for n in range(20_000)]
WIDE = {path: number(1) for path in MANY}
LONG_ID = name("c/__id" + "9" * 5_000 + "__")


def nested(depth: int) -> dict[str, Any]:
    where = compare("n", "EQUAL", number(1))
    for _ in range(depth):
        where = both("OR", where)
    return where


def deep(depth: int) -> dict[str, Any]:
    value = number(1)
    for _ in range(depth):
        value = mapping(a=value)
    return value


def transformed(**transform: Any) -> dict[str, Any]:
    return {"transform": {"document": name("c/t"), "field_transforms": [transform]}}


def counted(count: int) -> tuple[str, dict[str, Any]]:
    aggregations = [{"alias": f"a{n}", "count": {}} for n in range(count)]
    asked = {"structured_query": query(), "aggregations": aggregations}
    return "RunAggregationQuery", {"parent": ROOT, "structured_aggregation_query": asked}


def listed(**rest: Any) -> tuple[str, dict[str, Any]]:
    return "ListDocuments", {"parent": ROOT, "collection_id": "c", **rest}


DEAR: dict[str, tuple[str, dict[str, Any]]] = {
    "an id of 5,000 digits": run(
        query(where=compare("r", "IN", array({"reference_value": LONG_ID}, number(1))))
    ),
    "an id of 5,000 digits stored": commit(set_to("c/r", {"r": {"reference_value": LONG_ID}})),
    "a field path of 5,000 names": commit(
        transformed(field_path="a." * 5_000 + "a", increment=number(1))
    ),
    "a mask path of 5,000 names": commit(
        set_to("c/t", {"a": deep(15)}, update_mask={"field_paths": ["a." * 5_000 + "a"]})
    ),
    "a projection of half a million names": run(
        query(select={"fields": [field("a." * 500_000 + "a")]})
    ),
    "a mebibyte of backticks": run(query(select={"fields": [field("`" * MEBIBYTE)]})),
    "a filter 45 deep": run(query(where=nested(45))),
    "2**30 disjunctions": run(query(where=both("AND", *[EITHER] * 30))),
    "30**3000 disjunctions": run(query(where=both("AND", *[compare("a", "IN", THIRTY)] * 3_000))),
    "a union of 20,000": commit(
        transformed(
            field_path="a",
            append_missing_elements=array(*map(number, range(20_000)))["array_value"],
        )
    ),
    "a removal of 20,000": commit(
        transformed(
            field_path="a",
            remove_all_from_array=array(*map(number, range(9, 20_009)))["array_value"],
        )
    ),
    "a mask of 20,000": commit(set_to("c/wide", WIDE, update_mask={"field_paths": MANY})),
    "a projection of 20,000": run(query(select={"fields": [field(path) for path in MANY]})),
    "a mask of 20,000 for what is read": batch_get("c/wide", mask={"field_paths": MANY}),
    "an order of 20,000": run(query(order_by=[order(path) for path in MANY])),
    "an order of 20,000 in words": listed(order_by=",".join(MANY)),
    "a cursor of 20,000": run(
        query(order_by=[order("n")], start_at={"values": [number(1)] * 20_000})
    ),
    "1,000 writes of a wide document": commit(
        set_to("c/wide", WIDE),
        *(
            set_to("c/wide", {"x": number(n)}, update_mask={"field_paths": ["x"]})
            for n in range(1_000)
        ),
    ),
    "500 transforms of a wide document": commit(
        {
            "transform": {
                "document": name("c/wide"),
                "field_transforms": [
                    {"field_path": f"y{n}", "increment": number(1)} for n in range(500)
                ],
            }
        }
    ),
    "20,000 deletes": commit(*({"delete": name(f"c/{n}")} for n in range(20_000))),
    "20,000 names": batch_get(*(f"c/{n}" for n in range(20_000))),
    "one name 20,000 times": batch_get(*["c/wide"] * 20_000),
    "20,000 aggregations": counted(20_000),
    "an offset beyond all": run(query(offset=2**31 - 1, limit={"value": 2**31 - 1})),
    "2**63 partitions": (
        "PartitionQuery",
        {
            "parent": ROOT,
            "structured_query": query(group=True, order_by=[order("__name__")]),
            "partition_count": 2**63 - 1,
        },
    ),
    "operands of a mebibyte": run(
        query(where=compare("s", "NOT_IN", array(*[text("x" * 100_000)] * 10)))
    ),
    "a database of a long name": batch_get(),
}
DEAR["a database of a long name"][1]["database"] = f"projects/{'p' * MEBIBYTE}/databases/d"


@pytest.mark.parametrize("what", DEAR)
async def test_a_dear_request_is_answered_soon_or_refused(server, channel, what):
    method, fields = DEAR[what]
    begun = time.monotonic()
    outcome = await asked(channel, method, fields)
    assert (wrong := defect(outcome)) is None, wrong[:500]
    assert time.monotonic() - begun < SECONDS
    assert await server.complaint(channel) is None
