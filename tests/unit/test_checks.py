"""The checks of a change of stage, each by itself and in their list."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from crossfade.certified import why_not
from crossfade.checks import checks_of, run_checks
from crossfade.checks.certificate import Standard
from crossfade.checks.facts import Facts
from crossfade.plan import Stage
from crossfade.ramp import Calls, Figures, Limits, Outcome, overall
from crossfade.stores.postgres.findings import Certificate

CALLS = Calls(50_000, 0, 0.01)
CERTIFICATE = Certificate(
    job=7,
    at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    age=3_600.0,
    epoch=4,
    generation=2,
    fingerprint="f",
    mode="full",
    collections=(),
    equal=True,
)
READY = Facts(
    copied=True,
    pending=3,
    oldest_seconds=0.2,
    dead=0,
    figures=Figures(50_000, 0, CALLS, CALLS),
    limits=Limits(),
    epoch=4,
    generation=2,
    fingerprint="f",
    certificate=CERTIFICATE,
)


def certified(**changes: Any) -> Facts:
    return replace(READY, certificate=replace(CERTIFICATE, **changes))


FORWARD = list(zip(list(Stage), list(Stage)[1:], strict=False))


@pytest.mark.parametrize(("before", "target"), FORWARD)
def test_whoever_is_ready_passes(before, target):
    assert overall(run_checks(before, target, READY)) is Outcome.PASS


@pytest.mark.parametrize(
    ("facts", "target", "name", "outcome"),
    [
        (replace(READY, copied=False), "live", "backfill complete", "hold"),
        (replace(READY, dead=2), "live", "dead letters", "fail"),
        (replace(READY, oldest_seconds=9.0), "live", "pending", "hold"),
        (replace(READY, certificate=None), "live", "validated", "hold"),
        (replace(READY, epoch=5), "live", "validated", "hold"),
        (replace(READY, generation=3), "live", "validated", "hold"),
        (replace(READY, fingerprint="g"), "live", "validated", "hold"),
        (certified(age=90_000.0), "live", "validated", "hold"),
        (replace(READY, certificate_age=3_599.0), "live", "validated", "hold"),
        (certified(equal=False), "live", "validated", "fail"),
        (replace(READY, oldest_seconds=9.0), "complete", "reverse backlog", "hold"),
        (replace(READY, figures=Figures()), "live", "verdicts", "hold"),
        (replace(READY, figures=Figures()), "live", "error rates", "hold"),
        (replace(READY, figures=Figures()), "live", "p99 ratio", "hold"),
        (replace(READY, figures=Figures(100, 50)), "live", "verdicts", "fail"),
    ],
)
def test_what_is_amiss_is_named(facts, target, name, outcome):
    answers = {each.name: each for each in run_checks(Stage.SHADOW, Stage(target), facts)}
    assert answers[name].outcome == outcome
    assert answers[name].reason


@pytest.mark.parametrize(
    ("changes", "latest", "reason"),
    [
        ({}, 7, ""),
        ({"equal": False}, 7, "found differences"),
        ({"mode": "quick"}, 6, "by version alone"),
        ({"mode": "since"}, 6, "what was written lately"),
        ({"collections": ("tasks",)}, 6, "some collections only"),
        ({}, 8, "followed by validation 8"),
        ({"epoch": 3}, 7, "before a change of authority"),
        ({"generation": 1}, 7, "before a change of authority"),
        ({"fingerprint": "g"}, 7, "another schema or mapping"),
        ({"age": 86_500.0}, 7, "24.03 h old; 24 h are allowed"),
    ],
)
def test_which_validation_is_the_certificate_and_why_another_is_not(changes, latest, reason):
    said = why_not(replace(CERTIFICATE, **changes), latest, Standard(4, 2, "f", 86_400.0))
    assert reason in said
    assert bool(said) is bool(reason)


def test_several_stages_at_once_take_the_checks_of_all():
    several = checks_of(Stage.OFF, Stage.COMPLETE)
    assert set(several) == {check for step in FORWARD for check in checks_of(*step)}
    assert len(several) == len(set(several))


@pytest.mark.parametrize("before", list(Stage))
def test_nothing_holds_a_way_back(before):
    stages = list(Stage)
    for target in stages[: stages.index(before) + 1]:
        assert checks_of(before, target) == ()
