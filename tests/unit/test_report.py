"""What a validation counts, and its report: as data, and as a page that needs nothing else."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

from crossfade.content import Content
from crossfade.diff import diff
from crossfade.jobs.integrity import Breach, Violation
from crossfade.jobs.report import Circumstances, make_report, to_html
from crossfade.jobs.tally import COMPARED, MAX_FIELDS, OTHER_FIELDS, Tally
from crossfade.plan import StoreName
from crossfade.stores.postgres.findings import Found
from crossfade.verdict import Verdict

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
OF = Circumstances(
    job=7,
    group="default",
    mode="full",
    since=None,
    collections=(),
    firestore="projects/p/databases/(default)",
    postgresql="db:5432/violet",
    authority="firestore",
    stage="shadow",
    epoch=3,
    generation=1,
    begun_at=AT,
    ended_at=AT.replace(minute=2),
    version="1.2.3",
    mapping="violet",
    fingerprint="abc",
    revisions=("crossfade_0008",),
)
FIRESTORE, POSTGRESQL = StoreName.FIRESTORE, StoreName.POSTGRESQL


def contents(count: int) -> list[Content]:
    return [Content(f"a/{n}", n, str(n).encode()) for n in range(count)]


def test_a_digest_does_not_depend_on_the_order_or_the_parts():
    documents = contents(50)
    whole, shuffled = Tally(), Tally()
    for each in documents:
        whole.equal("a", each.lanes())
    Random(1).shuffle(documents)
    for start in range(0, 50, 10):
        part = Tally()
        for each in documents[start : start + 10]:
            part.held("a", FIRESTORE, each.lanes())
        shuffled.add(Tally(json.loads(json.dumps(part.counts))))
    assert whole.digest("a", FIRESTORE) == shuffled.digest("a", FIRESTORE)
    assert whole.digest("a", FIRESTORE) == whole.digest("a", POSTGRESQL)
    assert whole.total(Verdict.MATCH) == whole.total(COMPARED) == 50


def test_a_digest_sees_contents_paths_and_numbers():
    seen = set()
    for changed in (
        contents(3),
        contents(4),
        [*contents(2), Content("a/2", 2, b"other")],
        [*contents(2), Content("a/3", 2, b"2")],
        [*contents(3), *contents(1)],
    ):
        tally = Tally()
        for each in changed:
            tally.held("a", FIRESTORE, each.lanes())
        seen.add(tally.digest("a", FIRESTORE))
    assert len(seen) == 5


def test_fields_are_counted_once_a_document_and_not_without_a_bound():
    tally = Tally()
    tally.fields("a", diff({"l": [1, 2], "s": "x", "\0": 1}, {"l": [3, 4], "s": 1, "\0": 2}))
    hidden, *named = tally.fields_of("a")
    assert named == [("l", "value", 1), ("s", "type", 1)]
    assert hidden[1:] == ("value", 1)
    assert hidden[0].startswith("`#"), "a key that is no name of a field is told as a hash"
    for n in range(MAX_FIELDS + 5):
        tally.fields("a", diff({f"f{n}": 1}, {}))
    assert len(tally.fields_of("a")) <= MAX_FIELDS + 1
    assert (OTHER_FIELDS, "missing", 8) in tally.fields_of("a")
    assert "\0" not in json.dumps(tally.counts).encode().decode("unicode_escape")


def test_equal_and_different():
    tally = Tally()
    tally.equal("a", (1, 2, 3, 4))
    assert make_report(OF, tally, [], [], 0, [])["equal"]
    assert make_report(OF, tally, [], ["a/9"], 0, [])["equal"]
    assert not make_report(OF, tally, [], ["a/9"], 1, [])["equal"]
    for verdict in (Verdict.WRONG, Verdict.STALE, Verdict.MISSING, Verdict.EXTRA):
        other = Tally(tally.counts)
        other.count("a", verdict)
        assert not make_report(OF, other, [], [], 0, [])["equal"]


def test_the_page_shows_everything_and_loads_nothing():
    tally = Tally()
    tally.equal("tasks", (1, 2, 3, 4))
    tally.count("tasks", Verdict.WRONG)
    tally.fields("tasks", diff({"<b>": 1}, {"<b>": 2}))
    tally.rule("tasks", "clock skew", 3)
    hostile = "tasks/<script>alert(1)</script>"
    shown = {"type": "string", "length": 3, "hash": "ab12"}
    body = {
        "differences": [
            {"field": "<b>", "kind": "value", "authority": shown, "mirror": None},
        ],
        "versions": {"firestore": {"exists": True, "time": 5}, "postgresql": None},
    }
    violation = Violation("users", "email", Breach.DUPLICATE, 2, ("users/<i>",))
    report = make_report(
        OF, tally, [Found("tasks", hostile, "wrong", body)], ["tasks/m"], 0, [violation]
    )
    page = to_html(json.loads(json.dumps(report)))
    for text in ("The stores differ", "clock skew", "string of 3 #ab12", "tasks/m", "1.2.3"):
        assert text in page
    assert "<script" not in page
    assert "users/<i>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?:", page)
    assert page.count("<table>") == page.count("</table>")
    quick = make_report(replace(OF, mode="since", since=AT), Tally(), [], [], 0, [])
    assert "what was written since 2026-03-01T12:00:00+00:00" in to_html(quick)
