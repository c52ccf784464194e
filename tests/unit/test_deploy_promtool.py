"""Prometheus's own word on configuration, rules and queries.

promtool comes with Debian's package `prometheus`. `CROSSFADE_REQUIRE_PROMTOOL=1` turns its
absence from a skip into a failure.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "rules/crossfade.yaml"
IN_CLUSTER = "kubernetes_sd_configs:\n      - role: pod"
SECONDS = 60


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is needed (Debian's package prometheus)"
        if os.environ.get("CROSSFADE_REQUIRE_PROMTOOL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, check=False, timeout=SECONDS
    )


@pytest.mark.parametrize("name", ["prometheus.yml", "scraping.yml", "kubernetes.yml"])
def test_a_configuration_with_its_rules(promtool, tmp_path, name):
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    # Asks for the files that are named, too; those of secrets are the operator's.
    (tmp_path / "prometheus/secrets").mkdir()
    (tmp_path / "prometheus/secrets/crossfade-token").write_text("a-token-of-the-tests\n")
    file = tmp_path / "prometheus" / name
    # Debian builds it without this one way to find targets.
    file.write_text(file.read_text().replace(IN_CLUSTER, "static_configs: []"))
    done = run(promtool, "check", "config", file)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout + done.stderr


def test_every_alert_is_heard_when_it_must_and_silent_when_it_must(promtool):
    done = run(promtool, "test", "rules", PROMETHEUS / "tests/crossfade.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("about", "rule", "kept"),
    [
        # The reason for the records: increase() alone does not see what a series begins with.
        (
            "the very first wrong verdict",
            "(crossfade_verdicts_total unless crossfade_verdicts_total offset 10m)\n",
            "vector(0)\n",
        ),
        (
            "a rollback that loses writes",
            (
                "unless max by (crossfade_group) "
                '(crossfade_stage_ratio{crossfade_stage="complete"}) == 1\n'
            ),
            "\n",
        ),
        (
            "a sidecar that is not there",
            "max by (http_url) (httpcheck_error) > 0\n",
            "vector(0) > 0\n",
        ),
        (
            "puts that are deferred",
            "> on () 0.01 * crossfade:commits:increase10m\n",
            "> on () 0 * vector(1)\n",
        ),
        ("a store fails", "UNAVAILABLE|", "FAILED_PRECONDITION|UNAVAILABLE|"),
    ],
)
def test_the_tests_of_the_rules_notice_a_rule_without_its_point(
    promtool, tmp_path, about, rule, kept
):
    text = RULES.read_text()
    assert rule in text
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    cases = yaml.safe_load((PROMETHEUS / "tests/crossfade.yaml").read_text())
    # All of them take seconds.
    cases["tests"] = [each for each in cases["tests"] if each["name"].startswith(about)]
    tests = tmp_path / "tests/crossfade.yaml"
    tests.write_text(yaml.safe_dump(cases))

    changed = tmp_path / "rules" / RULES.name
    changed.write_text(text)
    assert run(promtool, "test", "rules", tests).returncode == 0
    changed.write_text(text.replace(rule, kept))
    assert run(promtool, "check", "rules", changed).returncode == 0
    assert run(promtool, "test", "rules", tests).returncode != 0


def test_what_the_dashboard_asks_is_promql(promtool, tmp_path):
    dashboard = json.loads((DEPLOY / "grafana/dashboards/crossfade.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ] + [note["expr"] for note in dashboard["annotations"]["list"]]
    rules = [
        {
            "record": f"panel:{index}",
            "expr": query.replace("$__rate_interval", "1m").replace("$collection", ".*"),
        }
        for index, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = run(promtool, "check", "rules", file)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
