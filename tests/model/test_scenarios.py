"""The complete protocol holds; without any one rule it does not. Larger bounds: `make model`."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.model import __main__ as command
from tests.model.rules import TABLE
from tests.model.scenarios import SCENARIOS

QUICK = [scenario for scenario in SCENARIOS if not scenario.slow]
RULES = [(table, rule) for table in TABLE for rule in fields(table)]
PAGE = Path(__file__).parents[2] / "docs" / "model.md"


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_the_verdict_is_the_expected_one(scenario):
    outcome = scenario.run()
    assert not scenario.fault(outcome), "\n".join(command.report(scenario, outcome, 0.0))


@pytest.mark.parametrize(("table", "rule"), RULES, ids=lambda it: getattr(it, "name", ""))
def test_each_rule_taken_away_alone_is_caught(table, rule):
    """The scenario that proves it is among those above, and says in how many steps."""
    proofs = [s for s in QUICK if s.rules is table and s.without == (rule.name,) and s.wrong]
    assert proofs
    assert all(proof.steps for proof in proofs)


@pytest.mark.parametrize("table", TABLE)
def test_each_model_has_a_scenario_in_which_all_rules_hold(table):
    assert any(s.rules is table and not s.without and s.wrong is None for s in QUICK)


@pytest.mark.parametrize(("table", "rule"), RULES, ids=lambda it: getattr(it, "name", ""))
def test_the_hole_that_a_rule_closes_is_told_in_the_docs(table, rule):
    assert re.search(rf"^\| {rule.metadata['hole']} \|", PAGE.read_text(), re.MULTILINE)


def test_names_tell_scenarios_apart():
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_the_command_prints_the_trace_and_is_content(capsys):
    assert command.main(["M3 "]) == 0
    printed = capsys.readouterr().out
    assert "M3 tombstones in a second table, READ COMMITTED: VIOLATED" in printed
    assert "resurrected: version 1 beside the tombstone 2" in printed
    assert "1 scenarios in" in printed


def test_the_command_fails_when_a_verdict_is_not_the_expected_one(capsys, monkeypatch):
    wrong = [replace(s, wrong=None) for s in SCENARIOS if s.name.startswith("M3 ")]
    monkeypatch.setattr(command, "SCENARIOS", wrong)
    assert command.main([]) == 1
    assert "NOT AS EXPECTED: must hold: VIOLATED resurrected" in capsys.readouterr().out


def test_the_command_refuses_an_unknown_name(capsys):
    assert command.main(["Z9"]) == 2
